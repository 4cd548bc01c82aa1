"""The weights of the golden checkpoints: drawn, stored as DeepSeek does, read back and decoded.

Called by make_golden.py and make_golden_beams.py. Needs torch; knows nothing of deepzig, nor of what HF makes of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

BLOCK = 128  # rows and columns that share one scale in DeepSeek's FP8 files
FP8_MAX = 448.0  # greatest finite float8_e4m3fn


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
