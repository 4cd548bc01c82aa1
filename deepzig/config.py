"""ModelConfig: what config.json says about a model, checked once, used by checkpoint, model, text and engine.

Reads both dialects of config.json, the classic one of DeepSeek's releases and the one that transformers 5 writes.
Knows nothing of weights. Field names are those of HF; where a field is absent, HF's default for the family holds.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepzig.errors import ConfigError, UnsupportedModelError, shown
from deepzig.small_files import read_json_object

MAX_CONFIG_BYTES = 1 << 20
MAX_SIZE = 1 << 24  # no dimension of a real model comes near; keeps products of two far from overflow
MAX_LAYERS = 1024
MAX_EXPERT_MATRICES = 300_000  # of all layers; Kimi-K2 has 70,000, and each costs some hundred bytes before it is read

# Families as HF defines them. kimi_k2 is deepseek_v3 under another name.
_COMMON_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "moe_layer_freq": 1, "rope_interleave": True, "attention_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
_V3_DEFAULTS: dict[str, Any] = _COMMON_DEFAULTS | {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "max_position_embeddings": 4096, "num_nextn_predict_layers": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_V2_DEFAULTS: dict[str, Any] = _COMMON_DEFAULTS | {
    "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "moe_intermediate_size": 1407,
    "num_hidden_layers": 32, "num_attention_heads": 32, "n_shared_experts": 2, "n_routed_experts": 64,
    "routed_scaling_factor": 1.0, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 0,
    "first_k_dense_replace": 0, "norm_topk_prob": False, "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 0, "scoring_func": "softmax", "topk_method": "greedy",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_FAMILY_DEFAULTS = {"deepseek_v3": _V3_DEFAULTS, "kimi_k2": _V3_DEFAULTS, "deepseek_v2": _V2_DEFAULTS}
_FAMILY_ROUTING = {
    "deepseek_v3": ("sigmoid", ("noaux_tc",)),
    "kimi_k2": ("sigmoid", ("noaux_tc",)),
    "deepseek_v2": ("softmax", ("greedy", "group_limited_greedy")),
}
_FAMILY_NAMES = {"deepseek_v3": "DeepSeek-V3", "kimi_k2": "Kimi-K2", "deepseek_v2": "DeepSeek-V2"}
PLAIN_FORMATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # dtype -> format of a matrix
SUPPORTED = "deepseek_v3 (V3, R1, V3.1, Moonlight), kimi_k2 and deepseek_v2 (V2, V2-Lite, V2.5, Coder-V2)"


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding; names of HF's `rope_parameters` (modeling_rope_utils). factor etc. matter for yarn only."""

    rope_type: str  # "default" or "yarn"
    rope_theta: float  # base of the frequencies
    factor: float = 1.0  # YaRN stretches the context by this
    original_max_position_embeddings: int = 0  # context of the training before YaRN
    beta_fast: float = 32.0  # frequencies with more turns in the original context stay as they are
    beta_slow: float = 1.0  # frequencies with fewer turns are divided by factor
    mscale: float | None = None  # see cos_sin_factor
    mscale_all_dim: float | None = None  # see softmax_factor
    attention_factor: float | None = None  # replaces what follows from mscale
    truncate: bool = True  # bounds between the frequencies are whole numbers

    @property
    def cos_sin_factor(self) -> float:
        """Factor on cos and sin (HF `attention_scaling`; YaRN paper section 3.4)."""
        if self.rope_type == "default":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """Factor on the softmax scale (HF `yarn_apply_mscale`)."""
        if self.rope_type == "default" or not self.mscale_all_dim:
            return 1.0
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2


def yarn_mscale(scale: float, mscale: float) -> float:
    """0.1 * mscale * ln(scale) + 1, or 1 where scale <= 1 (HF `yarn_get_mscale`)."""
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a DeepSeek-V2/V3-family model. Fields have the names of config.json.

    Raises:
        ConfigError: when made with values it cannot mean.
    """

    model_type: str  # "deepseek_v3", "kimi_k2" or "deepseek_v2"
    vocab_size: int  # rows of embedding and head
    hidden_size: int  # D
    intermediate_size: int  # width of the dense layers' MLP
    moe_intermediate_size: int  # I, width of an expert
    num_hidden_layers: int  # L, without MTP layers
    num_attention_heads: int  # H
    n_shared_experts: int  # 0: none
    n_routed_experts: int  # E; 0: every layer is dense
    num_experts_per_tok: int  # K
    routed_scaling_factor: float  # factor on the weights of the chosen experts
    kv_lora_rank: int  # R
    q_lora_rank: int | None  # None: queries are not compressed
    qk_rope_head_dim: int  # P
    qk_nope_head_dim: int  # N
    v_head_dim: int  # V
    n_group: int  # groups of experts
    topk_group: int  # groups that a token's experts are chosen from
    first_k_dense_replace: int  # layers at the beginning without experts
    norm_topk_prob: bool  # the weights of the chosen experts sum to 1
    max_position_embeddings: int  # the context, in tokens
    num_nextn_predict_layers: int  # MTP layers
    scoring_func: str  # "sigmoid" or "softmax"
    topk_method: str  # "noaux_tc", "greedy" or "group_limited_greedy"
    rope: RopeParameters  # from rope_scaling or rope_parameters
    bos_token_id: int | None  # begins a text
    eos_token_ids: tuple[int, ...]  # end an answer, unless generation_config.json has others
    rms_norm_eps: float  # added to the mean square in RMSNorm
    moe_layer_freq: int  # one layer in this many has experts
    rope_interleave: bool  # rotary pairs are neighbours in the weights
    attention_bias: bool  # projections of attention have biases
    tie_word_embeddings: bool  # the head is the embedding
    quantization_config: Mapping[str, Any] | None = field(compare=False)  # as config.json has it
    plain_format: str = field(compare=False)  # format of what is not quantised, from dtype

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ModelConfig":
        """Read `directory`/config.json.

        Raises:
            ConfigError: the file is missing, no JSON object, or holds values that cannot be.
            UnsupportedModelError: the model_type is none of the supported families.
        """
        path = Path(directory) / "config.json"
        return cls.from_dict(read_json_object(path, MAX_CONFIG_BYTES, ConfigError))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Make a config from the parsed config.json, in either dialect. Raises as `from_directory`."""
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in _FAMILY_DEFAULTS:
            raise UnsupportedModelError(f"model_type {shown(model_type)} is not supported; deepzig runs {SUPPORTED}")
        _refuse_unsupported(model_type, raw)
        values = {**_FAMILY_DEFAULTS[model_type], **{k: v for k, v in raw.items() if v is not None}}
        if "num_nextn_predict_layers" not in raw and "num_mtp_layers" in raw:
            values["num_nextn_predict_layers"] = raw["num_mtp_layers"]
        for name, meaning in _NULLS.items():
            if name in raw and raw[name] is None:
                values[name] = meaning
        q_lora_rank = values["q_lora_rank"]
        checked = {
            **{name: _integer(name, values[name], *bounds) for name, bounds in _INTEGER_RANGES.items()},
            **{name: _number(name, values[name]) for name in _NUMBERS},
            **{name: _boolean(name, values[name]) for name in _BOOLEANS},
            "scoring_func": values["scoring_func"],
            "topk_method": values["topk_method"],
            "q_lora_rank": None if q_lora_rank is None else _integer("q_lora_rank", q_lora_rank, 1, MAX_SIZE),
            "bos_token_id": values.get("bos_token_id") if _is_int(values.get("bos_token_id")) else None,
            "eos_token_ids": end_tokens(values.get("eos_token_id"), "config.json"),
            "quantization_config": (
                raw.get("quantization_config") or raw.get("compression_config") or raw.get("quantization")  # MLX's name
            ),
            "plain_format": PLAIN_FORMATS.get(str(raw.get("dtype") or raw.get("torch_dtype")), "bf16"),
        }
        return cls(model_type=model_type, rope=_rope_parameters(raw, checked["max_position_embeddings"]), **checked)

    def __post_init__(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; rotary embedding turns pairs")
        if not 0 < self.rms_norm_eps < 1:
            raise ConfigError(f"rms_norm_eps {self.rms_norm_eps} is not between 0 and 1")
        if self.n_routed_experts:
            self._check_routing()
        if self.quantization_config is not None and not isinstance(self.quantization_config, Mapping):
            raise ConfigError("quantization_config of config.json is no object; fetch it again")

    def _check_routing(self) -> None:
        n_experts, n_group = self.n_routed_experts, self.n_group
        n_layers = self.num_hidden_layers + self.num_nextn_predict_layers
        if 3 * n_layers * n_experts > MAX_EXPERT_MATRICES:
            raise ConfigError(
                f"{n_layers} layers of {n_experts} experts are more than {MAX_EXPERT_MATRICES} matrices, as no model "
                "has; fetch config.json again"
            )
        scoring, methods = _FAMILY_ROUTING[self.model_type]
        if self.scoring_func != scoring or self.topk_method not in methods:
            raise ConfigError(
                f"scoring_func {shown(self.scoring_func)} with topk_method {shown(self.topk_method)} is unknown for "
                f"{self.model_type}; supported: {scoring} with {' or '.join(methods)}"
            )
        if not 1 <= self.num_experts_per_tok <= n_experts:
            raise ConfigError(
                f"num_experts_per_tok {self.num_experts_per_tok} is not between 1 and {n_experts} experts"
            )
        if self.topk_method == "greedy":
            return
        if n_experts % n_group or not 1 <= self.topk_group <= n_group:
            raise ConfigError(
                f"{n_experts} experts cannot be split into n_group {n_group} with topk_group {self.topk_group}"
            )
        if self.num_experts_per_tok > self.topk_group * (n_experts // n_group):
            raise ConfigError(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds the experts of topk_group groups"
            )
        if self.topk_method == "noaux_tc" and n_experts // n_group < 2:
            raise ConfigError("noaux_tc scores a group by its two best experts; n_group leaves only one a group")

    @property
    def family(self) -> str:
        """What people call models of this model_type."""
        return f"{_FAMILY_NAMES[self.model_type]} family ({self.model_type})"

    @property
    def qk_head_dim(self) -> int:
        """N + P: width of a head's query and expanded key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """R + P: values that the cache holds for a token of a layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on q.k before the softmax: (N + P)^-1/2, times YaRN's mscale squared."""
        return self.qk_head_dim**-0.5 * self.rope.softmax_factor

    @property
    def moe_layers(self) -> list[int]:
        """The decoder layers that have experts, without MTP layers."""
        return [layer for layer in range(self.num_hidden_layers) if self.is_moe_layer(layer)]

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer `layer` (MTP layers follow the main ones) has experts rather than a dense MLP."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


_NULLS = {"q_lora_rank": None, "n_routed_experts": 0, "n_shared_experts": 0}  # where null is no absent value
_NUMBERS = ("routed_scaling_factor", "rms_norm_eps")
_BOOLEANS = ("norm_topk_prob", "rope_interleave", "attention_bias", "tie_word_embeddings")
_INTEGER_RANGES = {  # field: (least, greatest)
    "vocab_size": (1, MAX_SIZE),
    "hidden_size": (1, MAX_SIZE),
    "intermediate_size": (1, MAX_SIZE),
    "moe_intermediate_size": (1, MAX_SIZE),
    "num_hidden_layers": (1, MAX_LAYERS),
    "num_attention_heads": (1, 1 << 16),
    "n_shared_experts": (0, 1 << 10),
    "n_routed_experts": (0, 1 << 16),
    "num_experts_per_tok": (0, 1 << 10),
    "kv_lora_rank": (1, MAX_SIZE),
    "qk_rope_head_dim": (2, 1 << 16),
    "qk_nope_head_dim": (1, 1 << 16),
    "v_head_dim": (1, 1 << 16),
    "n_group": (1, 1 << 16),
    "topk_group": (1, 1 << 16),
    "first_k_dense_replace": (0, MAX_LAYERS),
    "max_position_embeddings": (1, 1 << 31),
    "num_nextn_predict_layers": (0, 64),
    "moe_layer_freq": (1, MAX_LAYERS),
}
_YARN_RANGES = {  # no model has others, with which logarithms and quotients fail
    "factor": (1e-6, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "mscale": (0, 1e3),
    "mscale_all_dim": (0, 1e3),
    "attention_factor": (1e-6, 1e3),
}


def _refuse_unsupported(model_type: str, raw: Mapping[str, Any]) -> None:
    """Raise ConfigError for values that change the arithmetic in a way that deepzig does not compute."""
    if raw.get("hidden_act", "silu") not in ("silu", None):
        raise ConfigError(f"hidden_act {shown(raw['hidden_act'])} is unknown; supported: silu")
    heads = raw.get("num_key_value_heads")
    if heads is not None and heads != raw.get(
        "num_attention_heads", _FAMILY_DEFAULTS[model_type]["num_attention_heads"]
    ):
        raise ConfigError(f"num_key_value_heads {shown(heads)} differs from num_attention_heads; MLA has one of each")
    if raw.get("mlp_bias"):
        raise ConfigError("mlp_bias true is not supported; no published model of the family has it")
    if model_type == "deepseek_v2" and raw.get("norm_topk_prob"):
        raise ConfigError(
            "norm_topk_prob true is ambiguous for deepseek_v2 and not supported; published models have false"
        )
    if model_type == "deepseek_v2" and raw.get("rope_interleave") is False:
        raise ConfigError("rope_interleave false is not supported for deepseek_v2, whose rotary pairs are interleaved")
    for name in ("index_topk", "index_n_heads", "compress_ratios"):
        if raw.get(name):
            raise UnsupportedModelError(
                f"config.json has {name}, sparse attention of a later family; deepzig runs {SUPPORTED}"
            )


def _rope_parameters(raw: Mapping[str, Any], max_position_embeddings: int) -> RopeParameters:
    """Rotary parameters from `rope_scaling` + `rope_theta` (classic) or `rope_parameters` (transformers 5)."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ConfigError("rope_scaling or rope_parameters of config.json is no object; fetch it again")
    values = {"rope_theta": raw.get("rope_theta", 10000.0), **{k: v for k, v in given.items() if v is not None}}
    rope_type = values.get("rope_type", values.get("type", "default"))
    theta = _number("rope_theta", values["rope_theta"])
    if theta <= 1:
        raise ConfigError(f"rope_theta {theta} is not above 1")
    if raw.get("partial_rotary_factor", values.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise ConfigError("partial_rotary_factor other than 1 is not supported")
    if rope_type == "default":
        return RopeParameters("default", theta)
    if rope_type != "yarn":
        raise ConfigError(f"rope type {shown(rope_type)} is unknown; supported: default, yarn")
    name = "original_max_position_embeddings"
    original = _integer(name, raw.get(name) or values.get(name, max_position_embeddings), 1, 1 << 31)
    values.setdefault("factor", max_position_embeddings / original)
    for name in ("beta_fast", "beta_slow"):
        if not values.get(name, True):  # HF takes its default for 0
            del values[name]
    return RopeParameters(
        "yarn",
        theta,
        original_max_position_embeddings=original,
        truncate=_boolean("truncate", values.get("truncate", True)),
        **{name: _number(name, values[name], *bounds) for name, bounds in _YARN_RANGES.items() if name in values},
    )


def _integer(name: str, value: Any, least: int, greatest: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        raise ConfigError(f"{name} {shown(value)} of config.json is no integer between {least} and {greatest}")
    return value


def _number(name: str, value: Any, least: float = -math.inf, greatest: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{name} {shown(value)} of config.json is no finite number")
    if not least <= value <= greatest:
        raise ConfigError(f"{name} {float(value)} of config.json is not between {least:g} and {greatest:g}")
    return float(value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} {shown(value)} of config.json is neither true nor false")
    return value


def end_tokens(value: Any, file: str) -> tuple[int, ...]:
    """The ids of an `eos_token_id`, an integer, a list of them or None. Raises ConfigError that names `file`."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(map(_is_int, listed)):
        raise ConfigError(f"eos_token_id {shown(value)} of {file} is no token id and no list of them; mend it")
    return tuple(listed)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
