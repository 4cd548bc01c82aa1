"""Recipe: which matrix gets which format, and what config.json then declares."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from deepzig.checkpoint.names import expected_tensors
from deepzig.checkpoint.quantization_config import converted_config, quantization_config, targets
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.schemes import CHANNEL, KEEP, Scheme, declared_scheme
from deepzig.config import ModelConfig
from deepzig.errors import RequestError

V3 = ModelConfig.from_dict(
    {
        "model_type": "deepseek_v3", "num_hidden_layers": 5, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2,
    }
)  # fmt: skip
LITE = ModelConfig.from_dict(  # V2-Lite's widths
    {
        "model_type": "deepseek_v2", "num_hidden_layers": 3, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "q_lora_rank": None, "num_attention_heads": 16, "first_k_dense_replace": 1, "hidden_size": 2048,
        "intermediate_size": 10944, "moe_intermediate_size": 1408,
    }
)  # fmt: skip


def assign(recipe: Recipe, config: ModelConfig = V3) -> dict[str, Scheme]:
    return recipe.assign(config, expected_tensors(config, config.num_nextn_predict_layers).linear)


def test_int8_takes_the_largest_group_that_divides() -> None:
    schemes = assign(Recipe("int8"), LITE)
    assert schemes["model.layers.0.mlp.gate_proj"] == Scheme("int8", 128)
    assert LITE.intermediate_size == 10944
    assert schemes["model.layers.0.mlp.down_proj"] == Scheme("int8", 64)
    assert schemes["model.layers.1.mlp.experts.3.down_proj"] == Scheme("int8", 128)


def test_what_is_never_rounded_to_integers() -> None:
    for wanted in ("int8", "int4", "fp8"):
        schemes = assign(Recipe(wanted))
        untouched = ["model.embed_tokens", "model.layers.4.mlp.gate", "model.layers.5.embed_tokens"]
        assert [schemes[module] for module in untouched] == [KEEP] * 3


def test_the_int4_mix() -> None:
    schemes = assign(Recipe("int4"))
    assert {scheme for module, scheme in schemes.items() if ".experts." in module} == {Scheme("int4", 64)}
    others = {module: scheme for module, scheme in schemes.items() if ".experts." not in module and scheme != KEEP}
    assert set(others.values()) == {Scheme("int8", 128)}
    assert {"lm_head", "model.layers.5.eh_proj", "model.layers.4.mlp.shared_experts.up_proj"} <= set(others)


def test_group_size_is_about_the_int4_part_of_the_mix() -> None:
    schemes = assign(Recipe("int4", 32))
    assert schemes["model.layers.4.mlp.experts.0.up_proj"] == Scheme("int4", 32)
    assert schemes["model.layers.4.self_attn.o_proj"] == Scheme("int8", 128)


def test_by_rows_but_the_head() -> None:
    schemes = assign(Recipe("int8", CHANNEL))
    assert schemes["model.layers.0.self_attn.o_proj"] == Scheme("int8", CHANNEL)
    assert schemes["lm_head"] == schemes["model.layers.5.shared_head.head"] == Scheme("int8", 128)


def test_fp8_leaves_alone_what_deepseek_leaves_alone() -> None:
    schemes = assign(Recipe("fp8"))
    kept = {module.rsplit(".", 1)[-1] for module, scheme in schemes.items() if scheme == KEEP}
    assert kept == {"embed_tokens", "lm_head", "head", "gate", "eh_proj"}


def test_plain_floats_are_for_all_but_the_router() -> None:
    schemes = assign(Recipe("fp16"))
    assert {module.rsplit(".", 1)[-1] for module, scheme in schemes.items() if scheme == KEEP} == {"gate"}
    assert schemes["model.embed_tokens"] == Scheme("f16")


def test_routed_experts_share_a_group_size() -> None:
    """transformers decodes them all by one config group."""
    config = ModelConfig.from_dict({"model_type": "deepseek_v3", "num_hidden_layers": 4, "moe_intermediate_size": 96,
                                    "hidden_size": 256})  # fmt: skip
    schemes = assign(Recipe("int8"), config)
    assert {scheme for module, scheme in schemes.items() if ".experts." in module} == {Scheme("int8", 32)}
    assert schemes["model.layers.3.mlp.shared_experts.gate_proj"] == Scheme("int8", 128)


def test_patterns_choose_and_exclude() -> None:
    include = (("*.experts.*", "int8"), ("*.experts.*.down_proj", "bf16"), ("model.layers.0.*", "int4"))
    schemes = assign(Recipe("int4", include=include, exclude=("*.o_proj",)))
    assert schemes["model.layers.4.mlp.experts.0.up_proj"] == Scheme("int8", 128)
    assert schemes["model.layers.4.mlp.experts.0.down_proj"] == Scheme("bf16")
    assert schemes["model.layers.0.self_attn.kv_b_proj"] == Scheme("int4", 64)
    assert schemes["model.layers.0.self_attn.o_proj"] == schemes["model.layers.4.self_attn.o_proj"] == KEEP
    assert schemes["model.layers.1.self_attn.kv_b_proj"] == Scheme("int8", 128)


def test_a_pattern_for_all_spares_router_and_embedding() -> None:
    schemes = assign(Recipe("int8", include=(("*", "int4"),)))
    assert schemes["lm_head"] == Scheme("int4", 64)
    assert schemes["model.embed_tokens"] == schemes["model.layers.4.mlp.gate"] == KEEP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "int3"}, "'int3' is unknown"),
        ({"format": "fp8", "include": (("*", "int8"),)}, "cannot be mixed"),
        ({"format": "int8", "group_size": 48}, "48 is none of"),
        ({"format": "bf16", "group_size": 64}, "has no group size"),
        ({"format": "int4", "group_size": CHANNEL}, "loses too much"),
    ],
)
def test_recipes_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("int8", exclude=("*.q_porj",)), "'\\*.q_porj' matches no module; one is model.embed_tokens"),
        (Recipe("int8", include=(("*.mlp.gate", "int8"),)), "matches only what cannot be int8"),
        (Recipe("int8", include=(("*embed_tokens", "int4"),)), "matches only what cannot be int4"),
    ],
)
def test_patterns_that_do_nothing_are_errors(recipe: Recipe, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        assign(recipe)


# ---- what config.json declares ---------------------------------------------------------------------------------------


def matched(schemes: dict[str, Scheme], patterns: list[str]) -> set[str]:
    """The modules that compressed-tensors matches with targets: names, or re:patterns with re.match."""
    return {
        module
        for module in schemes
        for pattern in patterns
        if (re.match(pattern[3:], module) if pattern.startswith("re:") else pattern == module)
    }


RECIPES = [
    Recipe("int8"),
    Recipe("int4"),
    Recipe("int8", CHANNEL),
    Recipe("int4", 32, exclude=("model.layers.3.*",)),
    Recipe("int4", include=(("model.layers.4.mlp.experts.*", "int8"),)),
    Recipe("int8", include=(("model.layers.*.mlp.experts.[135].down_proj", "int4"),), exclude=("lm_head",)),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_targets_match_the_modules_of_their_group_and_no_others(recipe: Recipe) -> None:
    schemes = assign(recipe)
    declared = quantization_config(schemes)
    assert declared is not None
    groups = declared["config_groups"].values()
    sizes = {(g["weights"]["num_bits"], g["weights"]["group_size"] or CHANNEL) for g in groups}
    assert len(sizes) == len(groups)
    for group in groups:
        bits, size = group["weights"]["num_bits"], group["weights"]["group_size"] or CHANNEL
        members = {module for module, scheme in schemes.items() if scheme == (f"int{bits}", size)}
        assert matched(schemes, group["targets"]) == members
    assert matched(schemes, declared["ignore"]) == {module for module, scheme in schemes.items() if scheme == KEEP}


def test_the_group_of_the_routed_experts_comes_first() -> None:
    for recipe in (Recipe("int4"), Recipe("int8"), Recipe("int4", include=(("model.layers.0.*", "int4"),))):
        declared = quantization_config(assign(recipe, LITE))
        assert declared is not None
        assert ".experts" in json.dumps(declared["config_groups"]["group_0"]["targets"])


def test_our_own_reader_accepts_what_is_declared() -> None:
    declared = declared_scheme(quantization_config(assign(Recipe("int4"), LITE)))
    assert declared is not None and declared.integers == {Scheme("int4", 64), Scheme("int8", 64), Scheme("int8", 128)}
    blocks = declared_scheme(quantization_config(assign(Recipe("fp8"))))
    assert blocks is not None and (blocks.block_format, blocks.block) == ("fp8", (128, 128))
    assert quantization_config(assign(Recipe("bf16"))) is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.layers.5.self_attn.o_proj", {"model.layers.5.self_attn.o_proj"}),
        ("model.layers.4.mlp.experts.*", {"model.layers.4.mlp.experts"}),
        ("model.layers.4.mlp.experts.3.up_proj", {"model.layers.4.mlp.experts.3.up_proj"}),
    ],
)
def test_what_patterns_leave_plain_beside_fp8_is_declared(pattern: str, expected: set[str]) -> None:
    schemes = assign(Recipe("fp8", exclude=(pattern,)))
    unsaid = {"lm_head", "model.layers.5.shared_head.head", "model.layers.5.eh_proj"}
    for modules in (schemes, {module: scheme for module, scheme in schemes.items() if module != "lm_head"}):  # tied
        declared = quantization_config(modules)
        assert declared is not None and set(declared["modules_to_not_convert"]) == unsaid | expected
    published = quantization_config(assign(Recipe("fp8")))
    assert published is not None and "modules_to_not_convert" not in published


def test_uniform_modules_become_few_targets() -> None:
    schemes = assign(Recipe("int4"))
    experts = [module for module in schemes if ".experts." in module]
    assert len(targets(experts, schemes)) == 3
    assert targets(experts[:1], schemes) == [experts[0]]


@pytest.mark.parametrize(
    ("raw", "wanted", "expected"),
    [
        ({"torch_dtype": "float32"}, "int8", {"torch_dtype": "bfloat16"}),
        ({"dtype": "float16"}, "int4", {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, "fp16", {"dtype": "float16"}),
        ({}, "bf16", {"torch_dtype": "bfloat16"}),
    ],
)
def test_dtype_of_the_result(raw: dict[str, Any], wanted: str, expected: dict[str, Any]) -> None:
    main = "f16" if wanted == "fp16" else wanted
    config = converted_config({"vocab_size": 5, **raw}, assign(Recipe(wanted)), main)
    assert {name: value for name, value in config.items() if "dtype" in name} == expected
    assert config["vocab_size"] == 5


def test_the_old_quantization_and_code_are_not_declared() -> None:
    raw = {"quantization_config": {"quant_method": "fp8"}, "compression_config": {}, "auto_map": {"AutoModel": "x.py"}}
    assert converted_config(raw, assign(Recipe("bf16")), "bf16") == {"torch_dtype": "bfloat16"}


def test_a_recipe_needs_no_numpy() -> None:
    code = "import sys, deepzig.checkpoint.recipe; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
