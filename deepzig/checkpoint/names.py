"""The tensors that a config asks for, by their names in the checkpoint.

Called by `loader`, `sizes`, the converter and the bench (which writes synthetic checkpoints); calls `config`. Knows the
modules of HF's `DeepseekV2ForCausalLM` and `DeepseekV3ForCausalLM` and DeepSeek's MTP layer, no files and no formats.
Experts have their published names, one module each; HF's fused `experts.gate_up_proj` exists in memory only.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deepzig.config import ModelConfig

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
_LAYER = re.compile(r"model\.layers\.(\d{1,4})\.")
_BUFFER_SUFFIX = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from the config


@dataclass(frozen=True)
class Expected:
    """Modules and tensors that a model is made of.

    linear   module path -> (N, K) of its weight, in whatever format and however many tensors it is stored
    vector   tensor name -> shape, of norms and biases
    alias    module path of `linear` -> module that stands in if it is stored without weight of its own
    """

    linear: dict[str, tuple[int, int]]
    vector: dict[str, tuple[int, ...]]
    alias: dict[str, str]


def expected_tensors(config: ModelConfig, n_mtp_layers: int = 0) -> Expected:
    """All modules of the main model and of its first `n_mtp_layers` MTP layers."""
    vocabulary = (config.vocab_size, config.hidden_size)
    expected = Expected({EMBEDDING: vocabulary}, {}, {})
    for layer in range(config.num_hidden_layers):
        _add_layer(expected, config, layer)
    expected.vector["model.norm.weight"] = (config.hidden_size,)
    expected.linear[HEAD] = vocabulary
    if config.tie_word_embeddings:  # HF ties towards whichever is stored, and leaves both alone if both are
        expected.alias.update({HEAD: EMBEDDING, EMBEDDING: HEAD})
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + n_mtp_layers):
        _add_mtp_layer(expected, config, layer)
    return expected


def count_mtp_layers(config: ModelConfig, names: Iterable[str]) -> int:
    """How many MTP layers must be complete: all up to the last one with any tensor stored."""
    first, end = config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers
    matches = (_LAYER.match(name) for name in names if not is_buffer(name))
    stored = {int(match[1]) for match in matches if match}
    return max((layer - first + 1 for layer in stored if first <= layer < end), default=0)


def is_buffer(name: str) -> bool:
    """Whether the tensor is a constant that models compute themselves."""
    return name.endswith(_BUFFER_SUFFIX)


def _add_layer(expected: Expected, config: ModelConfig, layer: int) -> None:
    """A decoder layer (HF `DeepseekV3DecoderLayer`)."""
    prefix = f"model.layers.{layer}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
        expected.vector[f"{prefix}.{norm}.weight"] = (config.hidden_size,)
    _add_attention(expected, config, f"{prefix}.self_attn")
    if config.is_moe_layer(layer):
        _add_moe(expected, config, f"{prefix}.mlp")
    else:
        expected.linear.update(_mlp(f"{prefix}.mlp", config.hidden_size, config.intermediate_size))


def _add_attention(expected: Expected, config: ModelConfig, prefix: str) -> None:
    """MLA (HF `DeepseekV3Attention`): of its five projections three have a bias if `attention_bias`."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    biased: dict[str, tuple[int, int]] = {}
    if config.q_lora_rank is None:
        expected.linear[f"{prefix}.q_proj"] = (heads * config.qk_head_dim, hidden)
    else:
        biased[f"{prefix}.q_a_proj"] = (config.q_lora_rank, hidden)
        expected.vector[f"{prefix}.q_a_layernorm.weight"] = (config.q_lora_rank,)
        expected.linear[f"{prefix}.q_b_proj"] = (heads * config.qk_head_dim, config.q_lora_rank)
    biased[f"{prefix}.kv_a_proj_with_mqa"] = (config.kv_lora_rank + config.qk_rope_head_dim, hidden)
    expected.vector[f"{prefix}.kv_a_layernorm.weight"] = (config.kv_lora_rank,)
    expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
    expected.linear[f"{prefix}.kv_b_proj"] = (expanded, config.kv_lora_rank)
    biased[f"{prefix}.o_proj"] = (hidden, heads * config.v_head_dim)
    expected.linear.update(biased)
    if config.attention_bias:
        expected.vector.update({f"{module}.bias": (shape[0],) for module, shape in biased.items()})


def _add_moe(expected: Expected, config: ModelConfig, prefix: str) -> None:
    """Router, routed and shared experts (HF `DeepseekV3MoE`)."""
    hidden, width = config.hidden_size, config.moe_intermediate_size
    expected.linear[f"{prefix}.gate"] = (config.n_routed_experts, hidden)
    if config.topk_method == "noaux_tc":
        expected.vector[f"{prefix}.gate.e_score_correction_bias"] = (config.n_routed_experts,)
    for expert in range(config.n_routed_experts):
        expected.linear.update(_mlp(f"{prefix}.experts.{expert}", hidden, width))
    if config.n_shared_experts:
        expected.linear.update(_mlp(f"{prefix}.shared_experts", hidden, width * config.n_shared_experts))


def _mlp(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    yield f"{prefix}.gate_proj", (width, hidden)
    yield f"{prefix}.up_proj", (width, hidden)
    yield f"{prefix}.down_proj", (hidden, width)


def _add_mtp_layer(expected: Expected, config: ModelConfig, layer: int) -> None:
    """A multi-token-prediction layer (DeepSeek-V3 report section 2.2; README_WEIGHTS.md of DeepSeek-V3)."""
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    _add_layer(expected, config, layer)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        expected.vector[f"{prefix}.{norm}.weight"] = (hidden,)
    expected.linear[f"{prefix}.eh_proj"] = (hidden, 2 * hidden)
    for module, main in ((f"{prefix}.embed_tokens", EMBEDDING), (f"{prefix}.shared_head.head", HEAD)):
        expected.linear[module] = (config.vocab_size, hidden)
        expected.alias[module] = main
