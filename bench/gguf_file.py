"""The synthetic model as a GGUF file in Q8_0, so that llama.cpp can be measured on the same weights.

Imported by `peers` where the package gguf is installed, which gives names, fields and quantisation. llama.cpp's own
convert_hf_to_gguf.py uses the same package, but asks for a tokenizer, which this model lacks. Tensors are as its
`DeepseekV2Model` makes them: experts merged, kv_b_proj split into k_b, transposed, and v_b.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from bench.random_weights import is_embedding, random_rows, window
from bench.synthetic import REVISION, Synthetic, check_room, stored_modules, vectors
from deepzig.config import ModelConfig


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: its name there, its shape in numbers, its data piece by piece, u8 (Q8_0) or f32."""

    name: str
    shape: tuple[int, ...]
    chunks: list[np.ndarray]

    @property
    def is_q8(self) -> bool:
        return self.chunks[0].dtype == np.uint8

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self.chunks)


def ensure_gguf(n_layers: int, directory: Path) -> Path:
    """The file below `directory`, written unless it is there. Raises ResourceError if the disk lacks room."""
    path = directory / f"v3-{n_layers}l-q8_0-r{REVISION}.gguf"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        try:
            _write(ModelConfig.from_dict(Synthetic("bf16", n_layers).config()), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # gigabytes, after Ctrl-C
    return path


def _write(config: ModelConfig, path: Path) -> None:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.DEEPSEEK2])
    _add_fields(writer, config)
    tensors = list(_tensors(config))
    check_room(path, sum(tensor.nbytes for tensor in tensors))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.is_q8 else gguf.GGMLQuantizationType.F32
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if tensor.is_q8 else tensor.shape
        writer.add_tensor_info(tensor.name, shape, tensor.chunks[0].dtype, tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(np.concatenate([chunk.reshape(-1) for chunk in tensor.chunks]))
    writer.close()


def _add_fields(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """What llama.cpp must know of the architecture; no vocabulary."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(config.rope.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_vocab_size(config.vocab_size)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.latent_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def _tensors(config: ModelConfig) -> Iterator[_Tensor]:
    """All tensors, under llama.cpp's names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, config.num_hidden_layers)

    def name(module: str, suffix: str = ".weight") -> str:
        found = names.get_name(module)
        if found is None:
            raise ValueError(f"this version of gguf has no name for {module}")
        return f"{found}{suffix}"

    quantized = _QuantizedRows()
    modules = stored_modules(Synthetic("bf16", config.num_hidden_layers).config())
    for module, (n_rows, n_columns) in modules.items():
        prefix, is_expert, rest = module.partition(".experts.")
        if is_expert:
            expert, _, projection = rest.partition(".")
            if expert == "0":
                siblings = [f"{prefix}.experts.{i}.{projection}" for i in range(config.n_routed_experts)]
                chunks = [c for sibling in siblings for c in quantized.chunks(sibling, n_rows, n_columns)]
                yield _Tensor(name(f"{prefix}.experts.{projection}"), (len(siblings), n_rows, n_columns), chunks)
        elif module.endswith("kv_b_proj"):
            for half, values in zip("kv", _halves(config, module, n_rows, n_columns), strict=True):
                yield _Tensor(name(module.replace("kv_b", f"{half}_b")), values.shape, [_q8(values)])
        elif module.endswith(".mlp.gate"):
            values = window(module, random_rows(n_columns, False), n_rows).array()
            yield _Tensor(name(module), values.shape, [values])
        else:
            yield _Tensor(name(module), (n_rows, n_columns), quantized.chunks(module, n_rows, n_columns))
    for tensor_name, vector in vectors(config).items():
        module, _, suffix = tensor_name.rpartition(".")
        is_bias = suffix == "e_score_correction_bias"
        shown = name(f"{module}.e_score_correction", ".bias") if is_bias else name(module)
        yield _Tensor(shown, vector.shape, [vector.astype(np.float32)])


class _QuantizedRows:
    """`random_rows` in Q8_0."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, bool], np.ndarray] = {}

    def chunks(self, module: str, n_rows: int, n_columns: int) -> list[np.ndarray]:
        """The module's weight, u8, piece by piece."""
        key = n_columns, is_embedding(module)
        if key not in self._rows:
            self._rows[key] = _q8(random_rows(*key))
        return list(window(module, self._rows[key], n_rows).chunks())


def _q8(values: np.ndarray) -> np.ndarray:
    return gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)


def _halves(config: ModelConfig, module: str, n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """kv_b_proj as k_b (H, R, N) and v_b (H, V, R), f32."""
    values = window(module, random_rows(n_columns, False), n_rows).array()
    heads = values.reshape(config.num_attention_heads, -1, n_columns)  # (H, N + V, R)
    nope = config.qk_nope_head_dim
    return heads[:, :nope].transpose(0, 2, 1), heads[:, nope:]
