"""What deepzig writes, read by transformers with the compressed-tensors package: the same weights, the same logits; and
what compressed-tensors writes, read by deepzig.

transformers decodes routed experts while it loads them, in the dtype of their scales: it rounds code times scale to
bf16. All other integers it decodes when they are first used, here in float32, exactly. Plain floats it loads as bf16,
which is the dtype in config.json. The comparison makes the same roundings, and then asks for equal weights, and logits
within 2e-4.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from bench.reference_rounding import plain_weight
from bench.weight_tensors import dequantize
from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import ModelWeights, load_weights
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.plan import PLAIN
from deepzig.checkpoint.recipe import Recipe, is_routed
from deepzig.checkpoint.schemes import CHANNEL
from deepzig.config import ModelConfig
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.model.deepseek import DeepseekModel

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ATOL = 2e-4
MODELS = ["stories", "v3_classic", "v3_fp8", "v3_sharded", "v3_yarn", "moonlight", "v2_lite", "v2_new_dialect"]

pytestmark = [
    pytest.mark.slow,  # importing torch and transformers alone takes longer than most tests
    pytest.mark.filterwarnings("default"),  # theirs are not ours to mend
]


def source_of(name: str) -> Path:
    return BUNDLED.get(name, GOLDEN / name)


def transformers_model(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model as from_pretrained gives it by default, with plain arithmetic; and what it says of the keys."""
    pytest.importorskip("compressed_tensors", reason="needs torch, transformers and compressed-tensors")
    transformers = pytest.importorskip("transformers", reason="needs torch, transformers and compressed-tensors")
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **plain)
    return model, info


def transformers_logits(model: Any, ids: list[int]) -> np.ndarray:
    """In float32; decodes what is still packed, which replaces it in the model."""
    import torch

    torch.nn.Module.float(model)
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def transformers_weight(model: Any, module: str) -> np.ndarray:
    """The matrix at a module path, which for routed experts is a part of a larger one."""
    state = model.state_dict()
    if not is_routed(module):
        return np.asarray(state[f"{module}.weight"].float())
    base, number, name = module.rsplit(".", 2)
    if name == "down_proj":
        return np.asarray(state[f"{base}.down_proj"][int(number)].float())
    gate, up = state[f"{base}.gate_up_proj"][int(number)].float().chunk(2)
    return np.asarray(gate if name == "gate_proj" else up)


def as_transformers_has_it(weights: ModelWeights) -> ModelWeights:
    """With the roundings to bf16 that transformers makes."""
    linear = {
        module: plain_weight(dequantize(weight), "bf16") if is_routed(module) or weight.format in PLAIN else weight
        for module, weight in weights.linear.items()
    }
    vector = {
        name: values if name.endswith("correction_bias") else values.astype(bfloat16).astype(np.float32)
        for name, values in weights.vector.items()
    }
    return ModelWeights(linear, vector, weights.has_mtp)


CASES = [
    *((name, recipe) for name in MODELS for recipe in (Recipe("int8"), Recipe("int4"))),
    *((name, Recipe("int8", CHANNEL)) for name in ("stories", "v3_classic", "v2_lite")),
    ("stories", Recipe("int4", 32)),
    ("stories", Recipe("int4", 128, include=(("*", "int4"),))),
    ("stories", Recipe("int8", include=(("*.layers.2.self_attn.*", "int4"),), exclude=("*.3.*.o_proj", "lm_head"))),
]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_transformers_reads_what_deepzig_writes(name: str, recipe: Recipe, tmp_path: Path) -> None:
    convert(source_of(name), tmp_path / "out", Options(recipe))
    model, info = transformers_model(tmp_path / "out")
    config = ModelConfig.from_directory(tmp_path / "out")
    mtp = f"model.layers.{config.num_hidden_layers}."
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(key.startswith(mtp) for key in info["unexpected_keys"])

    expected = np.load(GOLDEN / ("stories.npz" if name == "stories" else f"{name}/expected.npz"))
    ids = [int(token) for token in (*expected["ids"], *expected["greedy"])]
    theirs = transformers_logits(model, ids)
    rounded = as_transformers_has_it(load_weights(open_checkpoint(tmp_path / "out"), config))
    for module, weight in rounded.linear.items():
        if not module.startswith(mtp):
            np.testing.assert_array_equal(transformers_weight(model, module), dequantize(weight), err_msg=module)

    network = DeepseekModel(config, rounded, n_threads=1)
    token_ids = np.array(ids, np.int32)
    hidden = np.concatenate(list(forward_chunks(network, token_ids, network.make_cache(len(ids)))))
    np.testing.assert_allclose(network.logits(hidden), theirs, rtol=0, atol=ATOL)


FOREIGN = {
    "pack-quantized int4 g32": (4, "group", 32, "pack-quantized"),
    "pack-quantized int4 g64": (4, "group", 64, "pack-quantized"),
    "pack-quantized int4 g128": (4, "group", 128, "pack-quantized"),
    "pack-quantized int8 g128": (8, "group", 128, "pack-quantized"),
    "pack-quantized int8 a row": (8, "channel", None, "pack-quantized"),
    "int-quantized int8 a row": (8, "channel", None, "int-quantized"),
    "int-quantized int8 g64": (8, "group", 64, "int-quantized"),
}


@pytest.mark.parametrize("scheme", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_deepzig_reads_what_compressed_tensors_writes(
    scheme: tuple[int, str, int | None, str], dtype: str, small_model: Path, tmp_path: Path
) -> None:
    bits, strategy, group_size, storage = scheme
    pytest.importorskip("compressed_tensors", reason="needs torch, transformers and compressed-tensors")
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file, save_file

    args = QuantizationArgs(num_bits=bits, strategy=strategy, group_size=group_size, symmetric=True)
    theirs = QuantizationScheme(targets=["Linear"], weights=args, format=storage)
    compressor = BaseCompressor.get_value_from_registry(storage)
    stored: dict[str, Any] = {}
    decoded: dict[str, np.ndarray] = {}
    for name, tensor in load_file(small_model / "model.safetensors").items():
        module, columns = name.removesuffix(".weight"), tensor.shape[-1]
        is_kept = tensor.ndim < 2 or "embed_tokens" in name or name.endswith(".mlp.gate.weight")
        if is_kept or columns % (group_size or columns):
            stored[name] = tensor
            continue
        groups = tensor.to(getattr(torch, dtype)).unflatten(-1, (-1, group_size or columns))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        packed = compressor.compress({"weight": tensor.to(scale.dtype), "weight_scale": scale}, theirs)
        stored.update({f"{module}.{suffix}": value.contiguous() for suffix, value in packed.items()})
        exact = {**packed, "weight_scale": scale.float()}
        decoded[module] = compressor.decompress(exact, theirs)["weight"].float().numpy()
    raw = json.loads((small_model / "config.json").read_text(encoding="utf-8"))
    declared = QuantizationConfig(config_groups={"group_0": theirs}, format=storage, ignore=["lm_head"])
    (tmp_path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": declared.model_dump(mode="json")}), encoding="utf-8"
    )
    save_file(stored, tmp_path / "model.safetensors")

    weights = load_weights(open_checkpoint(tmp_path), ModelConfig.from_directory(tmp_path))
    assert len(decoded) > 10
    for module, expected in decoded.items():
        np.testing.assert_array_equal(dequantize(weights.linear[module]), expected, err_msg=module)
