"""Sizes of models: from config.json alone they are those of the files that one would get."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.names import expected_tensors
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.sizes import (
    ModelSize,
    ParameterCount,
    active_share,
    converted_size,
    count_parameters,
    declared_size,
    stored_size,
    tensor_group,
)
from deepzig.config import ModelConfig
from deepzig.errors import CheckpointError

TESTS = Path(__file__).resolve().parent.parent
GOLDEN, PUBLISHED = TESTS / "golden", TESTS / "published"
Edit = Callable[[Path, Path, dict[str, np.ndarray | None]], Path]
V3_FILES = 688_586_727_753  # bytes of the 163 files of deepseek-ai/DeepSeek-V3
V2_LITE_TENSORS = 31_412_968_448  # total_size in the index of deepseek-ai/DeepSeek-V2-Lite


def golden(name: str) -> ModelConfig:
    return ModelConfig.from_directory(GOLDEN / name)


def published(name: str) -> ModelConfig:
    return ModelConfig.from_directory(PUBLISHED / name)


def without_mtp(size: ModelSize) -> dict[str, dict[str, int]]:
    """Formats of the main model: MTP layers need not be stored, nor have copies of embedding and head."""
    return {group: formats for group, formats in size.formats.items() if group != "MTP"}


@pytest.mark.parametrize(
    ("name", "billions", "active_billions"),
    [
        ("DeepSeek-V3", 671.0, 36.6),  # README_WEIGHTS.md of DeepSeek-V3: "36.6B (including 0.9B for the output head)"
        ("DeepSeek-V2", 235.7, 20.9),  # model card: 236B, 21B
        ("DeepSeek-V2-Lite", 15.7, 2.5),  # 15.7B, 2.4B
        ("Moonlight-16B-A3B", 16.0, 2.6),  # 16B, 3B with the embedding
        ("Kimi-K2-Instruct", 1026.4, 31.7),  # 1T, 32B
    ],
)
def test_parameters_are_those_of_the_model_card(name: str, billions: float, active_billions: float) -> None:
    count = count_parameters(published(name))
    assert (round(count.total / 1e9, 1), round(count.active / 1e9, 1)) == (billions, active_billions)


def test_moonlight_without_embedding_and_head_has_what_its_card_says() -> None:
    config = published("Moonlight-16B-A3B")
    count, vocabulary = count_parameters(config), config.vocab_size * config.hidden_size
    assert round((count.total - 2 * vocabulary) / 1e9, 2) == 15.29
    assert round((count.active - vocabulary) / 1e9, 2) == 2.24


def test_published_checkpoints_have_their_bytes() -> None:
    assert declared_size(published("DeepSeek-V2-Lite")).nbytes == V2_LITE_TENSORS
    headers = V3_FILES - declared_size(published("DeepSeek-V3")).nbytes
    assert 100 < headers / 91_991 < 150  # bytes of a tensor's entry in a header


@pytest.mark.parametrize("folder", ["v2_lite", "v3_classic", "v3_yarn", "moonlight", "kimi_k2"])
def test_parameters_are_the_values_in_the_files(folder: str) -> None:
    config = golden(folder)
    stored = open_checkpoint(GOLDEN / folder).infos
    sizes = {name: math.prod(info.shape) for name, info in stored.items() if not name.endswith("_scale_inv")}
    main = sum(size for name, size in sizes.items() if tensor_group(name, config) != "MTP")
    assert count_parameters(config).total == main


def test_active_parameters_leave_out_experts_and_embedding() -> None:
    config = golden("v3_classic")
    count = count_parameters(config)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = config.n_routed_experts - config.num_experts_per_tok
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    assert count.total - count.active == moe_layers * idle * expert + config.vocab_size * config.hidden_size


def test_a_tied_head_is_stored_once_and_read() -> None:
    untied = golden("v3_classic")
    tied = dataclasses.replace(untied, tie_word_embeddings=True)
    vocabulary = untied.vocab_size * untied.hidden_size
    assert count_parameters(untied) == ParameterCount(
        count_parameters(tied).total + vocabulary, count_parameters(tied).active, count_parameters(tied).mtp
    )
    assert declared_size(tied).bytes_per_token == declared_size(untied).bytes_per_token
    assert "head" not in declared_size(tied).formats
    int8 = converted_size(tied, Recipe("int8"))
    assert int8.formats["embedding"] == {tied.plain_format: vocabulary * (4 if tied.plain_format == "f32" else 2)}


def test_every_tensor_has_a_group() -> None:
    config = golden("v3_classic")
    expected = expected_tensors(config, config.num_nextn_predict_layers)
    groups = {name: tensor_group(name, config) for name in [*expected.linear, *expected.vector]}
    mlp = f"model.layers.{config.num_hidden_layers - 1}.mlp"
    assert groups[f"{mlp}.gate"] == groups[f"{mlp}.gate.e_score_correction_bias"] == "router"
    assert groups[f"{mlp}.shared_experts.gate_proj"] == "shared experts"
    assert groups["model.layers.0.mlp.gate_proj"] == "dense layers"
    assert groups["model.layers.0.self_attn.kv_a_layernorm.weight"] == "norms"
    shares = {group: active_share(config, group) for group in groups.values()}
    assert shares["routed experts"] == config.num_experts_per_tok / config.n_routed_experts
    assert {group for group, share in shares.items() if share == 0} == {"embedding", "MTP"} & shares.keys()


@pytest.mark.parametrize("folder", ["v2_lite", "v3_classic", "v3_fp8", "moonlight", "kimi_k2"])
def test_config_alone_tells_what_is_stored(folder: str) -> None:
    config = golden(folder)
    stored = stored_size(config, load_weights(open_checkpoint(GOLDEN / folder), config))
    declared = declared_size(config)
    assert declared.bytes_per_token == stored.bytes_per_token
    assert without_mtp(declared) == without_mtp(stored)


def test_int8_in_blocks_has_its_name(tmp_path: Path, edited: Edit) -> None:
    source = open_checkpoint(GOLDEN / "v3_fp8")
    codes = {name: source.array(name).view(np.int8) for name, info in source.infos.items() if info.dtype == "F8_E4M3"}
    folder = edited(GOLDEN / "v3_fp8", tmp_path / "int8", dict(codes))
    config = dataclasses.replace(golden("v3_fp8"), quantization_config={"quant_method": "blockwise_int8"})
    stored, declared = stored_size(config, load_weights(open_checkpoint(folder), config)), declared_size(config)
    assert without_mtp(declared) == without_mtp(stored)
    assert declared.main_format == "int8" and "fp8" not in declared.by_format


@pytest.mark.parametrize("wanted", ["int8", "int4", "fp8", "fp16"])
def test_sizes_are_those_of_the_conversion(wanted: str, small_model: Path, tmp_path: Path) -> None:
    expected = converted_size(ModelConfig.from_directory(small_model), Recipe(wanted))
    convert(small_model, tmp_path / "out", Options(Recipe(wanted)))
    config = ModelConfig.from_directory(tmp_path / "out")
    stored = stored_size(config, load_weights(open_checkpoint(tmp_path / "out"), config))
    assert (expected.formats, expected.bytes_per_token) == (stored.formats, stored.bytes_per_token)
    declared = declared_size(config)
    assert declared.bytes_per_token == stored.bytes_per_token
    totals = [{group: sum(formats.values()) for group, formats in without_mtp(s).items()} for s in (declared, stored)]
    assert totals[0] == totals[1]  # fp16 leaves the router in bf16, which config.json does not say
    infos = open_checkpoint(tmp_path / "out").infos
    assert expected.nbytes == sum(info.nbytes for name, info in infos.items() if not name.endswith(".weight_shape"))


def test_int4_experts_of_others_are_told_by_class_and_patterns() -> None:
    """As Kimi-K2-Thinking declares them."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
    }  # fmt: skip
    config = dataclasses.replace(published("Kimi-K2-Instruct"), quantization_config=quantization)
    formats = declared_size(config).formats
    assert {group: list(names) for group, names in formats.items()} == {
        "embedding": ["bf16"], "attention": ["bf16"], "dense layers": ["bf16"], "router": ["bf16"], "head": ["bf16"],
        "shared experts": ["bf16"], "routed experts": ["int4 g32"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        r".*?self_attn.*?\.(q|k|v|o|q_a|q_b|kv_a|kv_b)_proj$",
        rf".*layers\.({'|'.join(map(str, range(61)))})\.self_attn.*",
        r"model\.layers\.(?:[0-9]|[1-5][0-9]|60)\.mlp\.experts\.\d{1,3}\..*",
    ],
)
def test_patterns_as_people_write_them(pattern: str) -> None:
    weights = {"num_bits": 8, "type": "int", "group_size": 64}
    groups = {str(i): {"targets": [f"re:{pattern}"], "weights": weights} for i in range(2)}
    quantization = {"quant_method": "compressed-tensors", "config_groups": groups}
    declared = dataclasses.replace(published("DeepSeek-V3"), quantization_config=quantization)
    assert any("int8 g64" in formats for formats in declared_size(declared).formats.values())


def test_one_scale_a_row_without_groups() -> None:
    config = dataclasses.replace(published("Moonlight-16B-A3B"), quantization_config={"quant_method": "w8a8_int8"})
    formats = declared_size(config).formats
    assert list(formats["attention"]) == ["int8 row"] and list(formats["head"]) == ["bf16"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ignore": "lm_head"}, "no list of modules"),
        ({"ignore": ["re:("]}, "no pattern"),
        ({"ignore": ["re:a{99999999999999999999}"]}, "no pattern"),
        ({"ignore": ["re:" + "a" * 501]}, "those of 500 characters"),
        ({"ignore": ["re:(.|.|a)*Z!"]}, "without repeated groups"),
        ({"ignore": ["re:(.|.|a){2,40}+Z!"]}, "without repeated groups"),
        ({"ignore": ["re:(?x)(.|.|a) *Z!"]}, "without repeated groups"),
        ({"ignore": [r"re:(.|.|\\d+)*Z!"]}, "without repeated groups"),
        ({"ignore": ["re:" + "(.|..)" * 40 + "Z!"]}, "too long to match"),
        ({"ignore": ["re:" + ".?" * 40 + "Z!"]}, "too long to match"),
        ({"ignore": ["re:" + "[^)]*" * 9 + "Z!"]}, "too long to match"),
        ({"ignore": ["re:" + "[^[0-9]*" * 6 + "Z!"]}, "too long to match"),
        ({"ignore": ["re:{?" + ".*" * 8 + "Z!}?"]}, "too long to match"),
        ({"ignore": ["re:a"] * 2001}, "too long to match"),
        ({"config_groups": {"": {"targets": [3], "weights": {"num_bits": 8, "group_size": 64}}}}, "no list of modules"),
        ({"quant_method": "awq"}, "awq"),
    ],
)
def test_a_declaration_that_cannot_be_is_an_error(changed: dict[str, Any], message: str) -> None:
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", **changed}
    with pytest.raises(CheckpointError, match=message):
        declared_size(dataclasses.replace(golden("moonlight"), quantization_config=quantization))


@pytest.mark.parametrize(
    ("named", "plain"),
    [({"torch_dtype": "float16"}, "f16"), ({"dtype": "float32"}, "f32"), ({}, "bf16"), ({"dtype": 7}, "bf16")],
)
def test_the_dtype_of_both_dialects_counts(named: dict[str, Any], plain: str) -> None:
    config = ModelConfig.from_dict({"model_type": "deepseek_v3", **named})
    assert config.plain_format == plain
