"""Write the golden checkpoints of tests/golden and what HF transformers computes from them.

Run by hand (`pip install torch==2.13.0 transformers==5.23.0 safetensors`), never by the tests; tests/test_golden.py
reads the results. Each folder's config.json is written by hand and is the input: for it random weights are drawn,
stored as the case says, read back and decoded exactly to fp32 (golden_weights.py), and HF runs on just that
(golden_reference.py). It knows nothing of deepzig. What the files hold: tests/golden/README.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from golden_reference import MIN_LOGIT_MARGIN, Unsuitable, expectations, greedy_tokens, load_reference
from golden_weights import Case, decode_checkpoint, make_tensors, write_checkpoint
from transformers import AutoTokenizer, DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

GOLDEN = Path(__file__).parent / "golden"
V3_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
N_STORY = 100
MAX_SEEDS = 500

CASES = {
    "v3_classic": Case(seed=1000, mtp="copies"),
    "v3_new_dialect": Case(seed=2000, dtype=torch.float32, n_prompt=45),
    "v3_fp8": Case(seed=3000, fp8=True, mtp="shared", n_prompt=40),
    "v3_yarn": Case(seed=4000, n_prompt=56),
    "v3_yarn_mscale": Case(seed=5000, dtype=torch.float32, n_prompt=53),
    "v3_yarn_plain": Case(seed=6000, n_prompt=51),
    "moonlight": Case(seed=7000, bias_dtype=torch.bfloat16),
    "kimi_k2": Case(seed=8000, fp8=True, n_prompt=50),
    "v2_lite": Case(seed=9000, n_prompt=52),
    "v2_full": Case(seed=10000, n_prompt=49),
    "v2_new_dialect": Case(seed=11000, n_prompt=47),
    "v3_sharded": Case(seed=12000, dtype=torch.float16, n_shards=3),
}


def make_rope() -> str:
    """Write rope_v3.npz: HF's cos and sin of DeepSeek-V3's YaRN, from the first position to the last."""
    config = DeepseekV3Config(max_position_embeddings=163840, rope_parameters=dict(V3_ROPE))
    positions = torch.tensor([[0, 1, 4095, 4096, 50000, 100000, 163839]])
    cos, sin = DeepseekV3RotaryEmbedding(config)(torch.zeros(1), positions)
    half = cos.shape[-1] // 2  # HF's tables hold each angle twice
    arrays = {"positions": positions[0], "cos": cos[0, :, :half], "sin": sin[0, :, :half]}
    np.savez_compressed(
        GOLDEN / "rope_v3.npz", versions=versions(), **{name: tensor.numpy() for name, tensor in arrays.items()}
    )
    return f"rope: {cos.shape[1]} positions"


def versions() -> np.ndarray:
    """JSON text of the versions that computed the file."""
    return np.array(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}))


def make_case(name: str) -> str:
    """Write the checkpoint and expected.npz of one case; returns a line about it."""
    case, folder = CASES[name], GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    for seed in range(case.seed, case.seed + MAX_SEEDS):
        write_checkpoint(folder, make_tensors(config, case, seed), case.n_shards)
        with tempfile.TemporaryDirectory() as scratch:
            model = load_reference(config, decode_checkpoint(folder), Path(scratch))
            try:
                expected = expectations(model, case, seed)
            except Unsuitable:
                continue
        np.savez_compressed(folder / "expected.npz", versions=versions(), **expected)
        size = sum(file.stat().st_size for file in folder.iterdir())
        return f"{name}: seed {seed}, {size // 1024} KiB, std of logits {expected['logits'].std():.2f}"
    raise RuntimeError(f"{name}: no seed of {MAX_SEEDS} is free of near ties")


def make_stories(source: Path) -> str:
    """Write stories.npz: the prompt's ids with BOS, HF's logits and greedy tokens in fp32, from `source` decoded."""
    config = json.loads((source / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        model = load_reference(config, decode_checkpoint(source), Path(scratch))
    # HF's fast tokenizer class overlooks add_bos_token (true) of tokenizer_config.json, so BOS is put in front here
    text_ids = AutoTokenizer.from_pretrained(source)("Once upon a time", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[model.config.bos_token_id, *text_ids]])
    arrays = {
        "ids": ids[0],
        "logits": model(ids, use_cache=False).logits[0],
        "greedy": greedy_tokens(model, ids, N_STORY, MIN_LOGIT_MARGIN),
    }
    np.savez_compressed(
        GOLDEN / "stories.npz", versions=versions(), **{name: tensor.numpy() for name, tensor in arrays.items()}
    )
    return f"stories: ids {ids[0].tolist()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files.")
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="only this one (may be repeated)")
    parser.add_argument("--stories", type=Path, help="folder of the bundled stories model: write stories.npz")
    parser.add_argument("--rope", action="store_true", help="only rope_v3.npz")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.inference_mode():
        if arguments.rope or not (arguments.case or arguments.stories):
            print(make_rope(), flush=True)
        for name in arguments.case or ([] if arguments.stories or arguments.rope else CASES):
            print(make_case(name), flush=True)
        if arguments.stories:
            print(make_stories(arguments.stories), flush=True)


if __name__ == "__main__":
    main()
