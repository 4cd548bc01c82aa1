"""declared_scheme: what config.json may declare, and that all else is refused by name."""

from typing import Any

import pytest

from deepzig.checkpoint.schemes import CHANNEL, Declared, Scheme, declared_scheme
from deepzig.errors import CheckpointError


def compressed(top: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    given = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, **weights}
    group = {"targets": ["Linear"], "weights": given, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        **(top or {}),
    }


@pytest.mark.parametrize("config", [None, {}])
def test_nothing_declared(config: dict[str, Any] | None) -> None:
    assert declared_scheme(config) is None


def test_blocks() -> None:
    published = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert declared_scheme(published) == Declared("fp8", "fp8", (128, 128))
    assert declared_scheme({"quant_method": "fp8", "weight_block_size": [64, 32]}) == Declared("fp8", "fp8", (64, 32))
    assert declared_scheme({"quant_method": "fp8"}) == Declared("fp8", "fp8", (128, 128))
    assert declared_scheme({"quant_method": "blockwise_int8"}) == Declared("blockwise_int8", "int8", (128, 128))


def test_compressed_tensors_groups() -> None:
    config = compressed()
    config["config_groups"]["group_1"] = compressed(num_bits=4, group_size=64)["config_groups"]["group_0"]
    config["config_groups"]["group_2"] = compressed(strategy="channel", group_size=None)["config_groups"]["group_0"]
    config["config_groups"]["group_3"] = {"targets": ["re:.*norm"], "weights": None}
    declared = declared_scheme(config)
    assert declared is not None
    assert declared.integers == {Scheme("int8", 128), Scheme("int4", 64), Scheme("int8", CHANNEL)}
    assert declared.allows_integers(Scheme("int4", 64), 256) and declared.allows_integers(Scheme("int8", 96), 96)
    assert not declared.allows_integers(Scheme("int4", 128), 256)
    assert not declared.allows_integers(Scheme("int4", 96), 96)


@pytest.mark.parametrize(("group_size", "expected"), [(-1, CHANNEL), (32, 32)])
def test_strategy_follows_from_group_size(group_size: int, expected: int) -> None:
    declared = declared_scheme(compressed(strategy=None, group_size=group_size))
    assert declared is not None and declared.integers == {Scheme("int8", expected)}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "mx\x1bfp4"}, "mx.x1bfp4"),
        ({"quant_method": ["fp8"]}, "fp8"),
        ({"bits": 4}, "None"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
        ({"quant_method": "fp8", "weight_block_size": None}, "one scale a tensor"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "one scale a tensor"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}, "one scale a tensor"),
        (compressed({"format": "float-quantized"}), "float-quantized"),
        (compressed({"format": "nvfp4-pack-quantized"}), "nvfp4"),
        (compressed({"format": ["dense"]}), "dense"),
        (compressed({"sparsity_config": {"format": "sparse-24-bitmask"}}), "sparse"),
        (compressed({"transform_config": {"config_groups": {"u": {}}}}), "transform_config"),
        (compressed(type="float"), "float"),
        (compressed(num_bits=3), "3 bits"),
        (compressed(num_bits=8.0), "8.0 bits"),
        (compressed(group_size=32.0), "groups of 32.0"),
        (compressed(symmetric=False), "asymmetric"),
        (compressed(actorder="group"), "activation-ordered"),
        (compressed(actorder=True), "activation-ordered"),
        (compressed(strategy="tensor"), "tensor"),
        (compressed(strategy="block"), "block"),
        (compressed(strategy=None, group_size=None), "tensor"),
        (compressed(group_size=16), "groups of 16"),
        (compressed(group_size=None), "groups of None"),
    ],
)
def test_unsupported_scheme_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"declares .*{named}.*deepzig reads") as caught:
        declared_scheme(config)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": [128.0, 128]},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {"quant_method": "compressed-tensors", "config_groups": {"a": 1}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 4}}},
        {"quant_method": "compressed-tensors", "sparsity_config": [1]},
    ],
)
def test_malformed_config(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        declared_scheme(config)


@pytest.mark.parametrize("actorder", [None, False, "weight", "static"])
def test_actorder_that_moves_no_column_is_fine(actorder: Any) -> None:
    assert declared_scheme(compressed(actorder=actorder)) is not None
