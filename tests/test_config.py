"""ModelConfig: both dialects, HF's defaults, and refusal of what would change the arithmetic."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deepzig.config import ModelConfig
from deepzig.errors import ConfigError, UnsupportedModelError

V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 4, "n_shared_experts": 1, "n_routed_experts": 16,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "qk_nope_head_dim": 10, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "max_position_embeddings": 512, "rope_theta": 10000.0,
}  # fmt: skip
V2 = {**V3, "model_type": "deepseek_v2", "norm_topk_prob": False, "topk_method": "greedy", "scoring_func": "softmax"}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip


def test_derived_sizes() -> None:
    config = ModelConfig.from_dict(V3)
    assert (config.qk_head_dim, config.latent_dim) == (18, 24)
    assert config.softmax_scale == pytest.approx(18**-0.5)
    assert [config.is_moe_layer(i) for i in range(4)] == [False, True, True, True]


def test_both_dialects_give_the_same_config() -> None:
    classic = {**V3, "rope_theta": 50000.0, "rope_scaling": YARN, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
               "torch_dtype": "bfloat16", "num_nextn_predict_layers": 1}  # fmt: skip
    new = {k: v for k, v in V3.items() if k != "rope_theta"}
    new |= {
        "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 50000.0},
        "dtype": "bfloat16",
        "num_mtp_layers": 1,
    }
    assert ModelConfig.from_dict(classic) == ModelConfig.from_dict(new)


def test_yarn_scales_softmax_by_mscale_squared() -> None:
    config = ModelConfig.from_dict({**V3, "rope_scaling": YARN})
    mscale = 0.1 * math.log(40) + 1
    assert config.softmax_scale == pytest.approx(18**-0.5 * mscale**2)
    assert config.rope.cos_sin_factor == pytest.approx(1.0)  # mscale over mscale_all_dim


def test_absent_fields_take_the_defaults_of_the_family() -> None:
    v3, v2 = ModelConfig.from_dict({"model_type": "deepseek_v3"}), ModelConfig.from_dict({**V2, "n_group": None})
    assert (v3.num_hidden_layers, v3.hidden_size, v3.n_routed_experts, v3.q_lora_rank) == (61, 7168, 256, 1536)
    assert v3.num_nextn_predict_layers == 1
    assert (v2.n_group, v2.topk_method, v2.num_nextn_predict_layers) == (1, "greedy", 0)


def test_null_has_its_own_meaning_for_optional_parts() -> None:
    config = ModelConfig.from_dict({**V3, "q_lora_rank": None, "n_shared_experts": None})
    assert config.q_lora_rank is None
    assert config.n_shared_experts == 0
    assert not ModelConfig.from_dict({**V3, "n_routed_experts": None}).is_moe_layer(2)


@pytest.mark.parametrize("name", ["quantization_config", "compression_config", "quantization"])
def test_quantisation_has_several_names(name: str) -> None:
    assert ModelConfig.from_dict({**V3, name: {"bits": 4}}).quantization_config == {"bits": 4}


def test_kimi_is_v3_under_another_name() -> None:
    config = ModelConfig.from_dict(
        {**V3, "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "eos_token_id": [1, 7]}
    )
    assert config.scoring_func == "sigmoid"
    assert config.eos_token_ids == (1, 7)


@pytest.mark.parametrize("model_type", ["deepseek_v32", "deepseek_v4", "llama", "qwen2", None, 3, "x" * 500])
def test_other_families_are_named_with_what_is_supported(model_type: Any) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.from_dict({**V3, "model_type": model_type})
    message = str(caught.value)
    assert repr(model_type)[:20] in message
    assert "deepseek_v3" in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"topk_method": "top_any"}, {"topk_method": "greedy"}, {"scoring_func": "softmax"}, {"scoring_func": "tanh"},
        {"hidden_act": "gelu"}, {"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": {"type": "llama3"}},
        {"rope_scaling": "yarn"}, {"num_key_value_heads": 2}, {"mlp_bias": True}, {"partial_rotary_factor": 0.5},
        {"rope_interleave": "yes"}, {"norm_topk_prob": 1},
    ],
)  # fmt: skip
def test_values_that_change_the_arithmetic_are_refused(change: dict[str, Any]) -> None:
    ModelConfig.from_dict(V3)
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({**V3, **change})


@pytest.mark.parametrize(
    "change",
    [{"norm_topk_prob": True}, {"topk_method": "noaux_tc"}, {"scoring_func": "sigmoid"}, {"rope_interleave": False}],
)
def test_v2_refuses_what_hf_computes_otherwise(change: dict[str, Any]) -> None:
    ModelConfig.from_dict(V2)
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({**V2, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": -1}, {"hidden_size": 0},
        {"hidden_size": "64"}, {"hidden_size": True}, {"hidden_size": 64.5}, {"hidden_size": 2**40},
        {"vocab_size": [1]},
        {"rope_theta": math.nan}, {"rope_theta": math.inf}, {"rope_theta": -1.0}, {"rope_theta": "big"},
        {"rms_norm_eps": 0.0}, {"rms_norm_eps": math.nan}, {"qk_rope_head_dim": 7}, {"routed_scaling_factor": math.inf},
        {"n_group": 3}, {"topk_group": 5}, {"num_experts_per_tok": 0}, {"num_experts_per_tok": 17},
        {"num_experts_per_tok": 9}, {"n_group": 16}, {"moe_layer_freq": 0}, {"kv_lora_rank": None, "n_group": 0},
        {"rope_scaling": {**YARN, "factor": math.nan}}, {"rope_scaling": {**YARN, "factor": 0}},
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 0.5}}, {"quantization_config": [1]},
        {"rope_scaling": {**YARN, "factor": 1e300}}, {"rope_scaling": {**YARN, "beta_fast": -32}},
        {"rope_scaling": {**YARN, "beta_slow": 1e-320}}, {"rope_scaling": {**YARN, "beta_fast": 1e300}},
        {"rope_scaling": {**YARN, "mscale": -1}}, {"rope_scaling": {**YARN, "mscale_all_dim": 1e300}},
        {"rope_scaling": {**YARN, "attention_factor": 0}}, {"n_routed_experts": 65536, "num_hidden_layers": 1024},
        {"eos_token_id": "x"}, {"eos_token_id": 1e308}, {"eos_token_id": {}}, {"eos_token_id": [1, "x"]},
        {"eos_token_id": True},
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({**V3, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model_type":' + b" " * (1 << 20) + b"1}"]
)
def test_unreadable_files_are_config_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"), (b"<html>", "a web page")],
)
def test_what_stands_in_for_a_file(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        ModelConfig.from_directory(tmp_path)


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ModelConfig.from_directory(tmp_path)


def test_unknown_other_fields_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**V3, "auto_map": {"AutoModel": "x.py"}, "ep_size": 1}))
    assert ModelConfig.from_directory(tmp_path) == ModelConfig.from_dict(V3)
