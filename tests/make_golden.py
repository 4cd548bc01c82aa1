"""Write the golden checkpoints of tests/golden and what HF transformers computes from them.

Run by hand (`pip install torch==2.13.0 transformers==5.23.0 safetensors`), never by the tests; tests/test_golden.py
reads the results. Each folder's config.json is written by hand and is the input: this script draws random weights for
it, stores them as the case says, reads the files back, decodes them exactly to fp32 and runs HF (fp32, eager
attention, CPU) on just that. It knows nothing of deepzig. What the files hold: tests/golden/README.md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

GOLDEN = Path(__file__).parent / "golden"
V3_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
N_GREEDY = 24
N_STORY = 100
BLOCK = 128  # rows and columns that share one scale in DeepSeek's FP8 files
FP8_MAX = 448.0  # greatest finite float8_e4m3fn
# of HF; its default for experts, grouped_mm, refuses rows that are no multiple of 16 bytes
REFERENCE_ARITHMETIC: dict[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}

# A case is kept only if nothing in it hangs on the last bits of a sum; else the next seed is tried.
MIN_LOGIT_MARGIN = 2e-3  # best to second-best logit, at every greedy step
MIN_ROUTING_MARGIN = 1e-4  # last chosen to first rejected expert or group, for every token and layer
MIN_DISTINCT_TOKENS = 12  # of the 24 greedy ones
MAX_SEEDS = 500


@dataclass(frozen=True)
class Case:
    """How one checkpoint is stored. The architecture stands in its config.json."""

    seed: int
    dtype: torch.dtype = torch.bfloat16  # of all that is not fp8 or a correction bias
    bias_dtype: torch.dtype = torch.float32  # of e_score_correction_bias
    fp8: bool = False  # linear layers as F8_E4M3 with weight_scale_inv
    mtp: str = ""  # "": no MTP layer; "copies": with its own embedding and head; "shared": without
    n_shards: int = 1
    n_prompt: int = 48


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


class Unsuitable(Exception):
    """The weights of this seed give a near tie or a degenerate text."""


# ---- weights --------------------------------------------------------------------------------------------------------


def layer_shapes(c: dict[str, Any], moe: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names (within the layer) and shapes of a decoder layer's tensors, as in DeepSeek's files."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    rank, rope, nope, value = c["kv_lora_rank"], c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    q_rank = c["q_lora_rank"]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if q_rank is None:
        yield "self_attn.q_proj.weight", (heads * (nope + rope), hidden)
    else:
        yield "self_attn.q_a_proj.weight", (q_rank, hidden)
        yield "self_attn.q_a_layernorm.weight", (q_rank,)
        yield "self_attn.q_b_proj.weight", (heads * (nope + rope), q_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (rank + rope, hidden)
    yield "self_attn.kv_a_layernorm.weight", (rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (nope + value), rank)
    yield "self_attn.o_proj.weight", (hidden, heads * value)
    if c.get("attention_bias"):
        if q_rank is not None:
            yield "self_attn.q_a_proj.bias", (q_rank,)
        yield "self_attn.kv_a_proj_with_mqa.bias", (rank + rope,)
        yield "self_attn.o_proj.bias", (hidden,)
    blocks = {"mlp": c["intermediate_size"]}
    if moe:
        blocks = {f"mlp.experts.{e}": c["moe_intermediate_size"] for e in range(c["n_routed_experts"])}
        blocks["mlp.shared_experts"] = c["moe_intermediate_size"] * c["n_shared_experts"]
        yield "mlp.gate.weight", (c["n_routed_experts"], hidden)
        if c["model_type"] != "deepseek_v2":
            yield "mlp.gate.e_score_correction_bias", (c["n_routed_experts"],)
    for block, width in blocks.items():
        yield f"{block}.gate_proj.weight", (width, hidden)
        yield f"{block}.up_proj.weight", (width, hidden)
        yield f"{block}.down_proj.weight", (hidden, width)


def tensor_shapes(c: dict[str, Any], with_mtp: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors that are drawn, the MTP layer's without its embedding and head."""
    hidden, layers = c["hidden_size"], c["num_hidden_layers"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for layer in range(layers + with_mtp):
        for name, shape in layer_shapes(c, moe=layer >= c["first_k_dense_replace"]):
            yield f"model.layers.{layer}.{name}", shape
    if with_mtp:
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            yield f"model.layers.{layers}.{norm}.weight", (hidden,)
        yield f"model.layers.{layers}.eh_proj.weight", (hidden, 2 * hidden)
    yield "model.norm.weight", (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)


def draw(name: str, shape: tuple[int, ...], c: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """f32 array of `shape`, scaled so that logits are of order 1 and every part of the model shows in them."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * noise
    if name.endswith("e_score_correction_bias"):
        return 0.3 * noise - 0.45  # sigmoid + bias falls below 0 for some: masked groups must still lose to them
    if name.endswith(".bias"):
        return noise * np.float32(0.2 if "o_proj" in name else 0.03)  # the latents that the others shift are small too
    if "embed_tokens" in name:  # small as a real one, so that rms_norm_eps shows in the first layer
        return noise * np.float32(1.2 / np.sqrt(shape[1]) if c["tie_word_embeddings"] else 0.05)
    gains = {"lm_head": 1.5, "gate": 2.0, "q_proj": 1.5, "q_b_proj": 1.5, "q_a_proj": 0.05, "down_proj": 1.5}
    matrix = noise * np.float32(gains.get(name.split(".")[-2], 1.0))
    if ".experts." in name and "down_proj" in name:  # else HF's own fp32 error in `hidden` comes near the tolerance
        matrix /= np.float32(c["routed_scaling_factor"])
    if "kv_a_proj" in name:
        matrix[: c["kv_lora_rank"]] *= np.float32(0.05)  # a small latent shows the eps of kv_a_layernorm
    return matrix / np.float32(np.sqrt(shape[1]))


def to_fp8(matrix: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """f32 (N, K) -> float8_e4m3fn (N, K), f32 (ceil(N/128), ceil(K/128)), after making the blocks differ in size."""
    rows, columns = -(-matrix.shape[0] // BLOCK), -(-matrix.shape[1] // BLOCK)
    matrix = matrix * spread(torch.from_numpy(rng.uniform(0.5, 1.5, (rows, columns)).astype(np.float32)), matrix.shape)
    scale = torch.empty(rows, columns)
    for r in range(rows):
        for k in range(columns):
            block = matrix[r * BLOCK : (r + 1) * BLOCK, k * BLOCK : (k + 1) * BLOCK]
            scale[r, k] = block.abs().max() / FP8_MAX
    return (matrix / spread(scale, matrix.shape)).to(torch.float8_e4m3fn), scale


def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Block scales f32 (N/128, K/128), one for each element of `shape` (N, K)."""
    return scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]


def is_fp8(name: str) -> bool:
    """Whether DeepSeek's FP8 files quantise the tensor: projections yes; embedding, head, router, eh_proj, norms no."""
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and not name.endswith("eh_proj.weight")


def make_tensors(c: dict[str, Any], case: Case, seed: int) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint in the form in which they are stored."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(c, bool(case.mtp)):
        value = torch.from_numpy(draw(name, shape, c, rng))
        if case.fp8 and is_fp8(name):
            tensors[name], tensors[name + "_scale_inv"] = to_fp8(value, rng)
        else:
            tensors[name] = value.to(case.bias_dtype if name.endswith("correction_bias") else case.dtype)
    if case.mtp == "copies":
        mtp = f"model.layers.{c['num_hidden_layers']}."
        tensors[mtp + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[mtp + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], n_shards: int) -> None:
    """Write model.safetensors, or shards cut without regard to layers and model.safetensors.index.json."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if n_shards == 1:
        save_readable(tensors, folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for shard, names in enumerate(np.array_split(np.array(sorted(tensors)), n_shards), 1):
        file = f"model-{shard:05d}-of-{n_shards:06d}.safetensors"
        save_readable({str(n): tensors[str(n)] for n in names}, folder / file)
        weight_map |= {str(n): file for n in names}
    total_size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_readable(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write one safetensors file with the mode of any other file; the library makes them readable by the owner only."""
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def decode_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the files as f32: floats and int8 exactly, fp8 times its block's scale in one fp32 product."""
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    decoded: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(("_scale_inv", ".weight_scale", ".weight_shape")):
            continue
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            decoded[f"{module}.weight"] = unpack_int8(stored, module)
            continue
        decoded[name] = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            decoded[name] *= spread(stored[name + "_scale_inv"], tensor.shape)
    return decoded


def unpack_int8(stored: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """f32 (N, K) of pack-quantized int8: a byte is the code + 128 of a column, times the scale of its group; exact."""
    packed, scale, shape = (stored[f"{module}.weight_{part}"] for part in ("packed", "scale", "shape"))
    n_columns = int(shape[1])
    codes = packed.view(torch.uint8)[:, :n_columns].float() - 128
    return codes * scale.float().repeat_interleave(n_columns // scale.shape[1], dim=1)


# ---- reference ------------------------------------------------------------------------------------------------------


def load_reference(c: dict[str, Any], decoded: dict[str, torch.Tensor], scratch: Path) -> Any:
    """HF's model in fp32, made from the decoded tensors; raises if a tensor is missing, left over or changed."""
    config = {k: v for k, v in c.items() if k not in ("quantization_config", "auto_map")}
    config["model_type"] = c["model_type"].replace("kimi_k2", "deepseek_v3")  # HF has no kimi_k2; it is deepseek_v3
    scratch.joinpath("config.json").write_text(json.dumps(config))
    save_file(decoded, scratch / "model.safetensors", metadata={"format": "pt"})
    cls: Any = DeepseekV2ForCausalLM if c["model_type"] == "deepseek_v2" else DeepseekV3ForCausalLM
    # HF looks for the MTP layer under this pattern, which by default names layer 61 only
    cls._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{c['num_hidden_layers']}\..*"]
    model, info = cls.from_pretrained(scratch, **REFERENCE_ARITHMETIC, output_loading_info=True)
    if any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"HF did not take the checkpoint as it is: {info}")
    mtp_prefix = f"model.layers.{c['num_hidden_layers']}."
    check_same_weights(model, {n: t for n, t in decoded.items() if not n.startswith(mtp_prefix)})
    return model


def check_same_weights(model: torch.nn.Module, decoded: dict[str, torch.Tensor]) -> None:
    """Raise unless the model's fp32 state is exactly the decoded tensors, each used once."""
    left = dict(decoded)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and name not in decoded:
            want = decoded["model.embed_tokens.weight"]
        elif name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            pairs = [[left.pop(f"{base}{e}.{p}_proj.weight") for p in ("gate", "up")] for e in range(len(value))]
            want = torch.stack([torch.cat(pair) for pair in pairs])
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            want = torch.stack([left.pop(f"{base}{e}.down_proj.weight") for e in range(len(value))])
        else:
            want = left.pop(name)
        if value.dtype != torch.float32 or not torch.equal(value, want):
            raise ValueError(f"{name} of the HF model differs from the file")
    if left:
        raise ValueError(f"not used by the HF model: {sorted(left)}")


@contextmanager
def recorded(modules: list[torch.nn.Module]) -> Iterator[list[Any]]:
    """Inside the block, each call of one of `modules` appends (first input, output) to the list."""
    calls: list[Any] = []
    hooks = [m.register_forward_hook(lambda _m, args, out: calls.append((args[0], out))) for m in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def check_routing(gates: list[Any], calls: list[Any]) -> None:
    """Raise Unsuitable if a token's choice of groups or experts is nearly a tie (margins in units of the scores)."""
    for gate, (_, (router_logits, _, _)) in zip(gates, calls, strict=True):
        grouped = getattr(gate, "topk_method", "noaux_tc") != "greedy"
        if isinstance(getattr(gate, "e_score_correction_bias", None), torch.Tensor):
            scores = router_logits.sigmoid() + gate.e_score_correction_bias
            per_group = scores.unflatten(-1, (gate.num_group, -1)).topk(2).values.sum(-1)
        else:
            scores = router_logits.softmax(-1)
            per_group = scores.unflatten(-1, (gate.num_group, -1)).amax(-1) if grouped else scores
        if grouped:
            check_margin(per_group, gate.topk_group)
            kept = torch.zeros_like(per_group).scatter_(1, per_group.topk(gate.topk_group).indices, 1).bool()
            scores = scores.unflatten(-1, (gate.num_group, -1)).masked_fill(~kept[..., None], -torch.inf).flatten(1)
        check_margin(scores, gate.top_k)


def check_margin(scores: torch.Tensor, k: int) -> None:
    """scores f32 (T, n): raise Unsuitable if the k-th and (k+1)-th best are close in any row."""
    if k < scores.shape[-1]:
        best = scores.topk(k + 1).values
        if (best[:, k - 1] - best[:, k]).min() < MIN_ROUTING_MARGIN:
            raise Unsuitable("routing")


def moe_gates(layers: Any) -> list[Any]:
    """The routers of the layers that have one, in order."""
    return [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]


def greedy_tokens(model: Any, ids: torch.Tensor, n_tokens: int, min_margin: float) -> torch.Tensor:
    """int64 (n_tokens,) argmax continuation of ids (1, T), whole sequence recomputed at each step, EOS ignored."""
    sequence = ids
    for _ in range(n_tokens):
        best = model(sequence, use_cache=False).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < min_margin:
            raise Unsuitable("greedy")
        sequence = torch.cat([sequence, best.indices[:1][None]], dim=1)
    return sequence[0, ids.shape[1] :]


def mtp_logits(model: Any, ids: torch.Tensor, final_norm: torch.Tensor) -> torch.Tensor:
    """f32 (T-1, vocab): row t is HF's MTP layer on (final_norm of token t, embedding of token t+1), as README says."""
    mtp: Any = MtpModel.from_pretrained(model)
    position_ids = torch.arange(1, ids.shape[1])[None]  # of the token that is embedded, as HF's generate passes them
    gates = [mtp.layers[0].mtp_block.mlp.gate]
    with recorded(gates) as routed:
        hidden = mtp.forward_layer(
            0, final_norm[None, :-1], position_ids, MtpCache(config=model.config.get_mtp_config()), input_ids=ids[:, 1:]
        )
    check_routing(gates, routed)
    logits: torch.Tensor = mtp._project_to_logits(hidden)[0]
    return logits


def expectations(model: Any, case: Case, seed: int) -> dict[str, Any]:
    """The arrays of expected.npz, as its README lists them. Raises Unsuitable if they hang on rounding."""
    rng = np.random.default_rng(seed + 1_000_000)
    ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (1, case.n_prompt)))
    layers, gates = list(model.model.layers), moe_gates(model.model.layers)
    greedy = greedy_tokens(model, ids, N_GREEDY, MIN_LOGIT_MARGIN)
    if len(set(greedy.tolist())) < MIN_DISTINCT_TOKENS:
        raise Unsuitable("degenerate text")
    with recorded(gates) as routed:
        model(torch.cat([ids, greedy[None]], dim=1), use_cache=False)
    check_routing(gates, routed)
    with recorded(layers) as layer_calls, recorded(gates) as routed, recorded([model.model.norm]) as normed:
        logits = model(ids, use_cache=False).logits[0]
    topk_idx = torch.stack([idx for _, (_, _, idx) in routed])  # (n_moe_layers, T, K)
    topk_idx, order = topk_idx.sort(dim=-1)
    hidden = [layer_calls[0][0][0]] + [out[0] for _, out in layer_calls]
    arrays = {
        "ids": ids[0],
        "hidden": torch.stack(hidden),
        "final_norm": normed[0][1][0],
        "topk_idx": topk_idx.to(torch.int32),
        "topk_weight": torch.stack([weight for _, (_, weight, _) in routed]).gather(-1, order),
        "logits": logits,
        "greedy": greedy,
    }
    if case.mtp:
        arrays["mtp_logits"] = mtp_logits(model, ids, normed[0][1][0])
    return {name: tensor.numpy() for name, tensor in arrays.items()}


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


# ---- files ----------------------------------------------------------------------------------------------------------


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
