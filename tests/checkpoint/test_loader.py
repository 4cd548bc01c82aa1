"""load_weights on small whole checkpoints: every family and format loads, every fault is reported, all at once."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bench.reference_rounding import group_size_for, plain_weight, quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import dequantize, tensors_from_weight
from deepzig._kernels.weight import Weight
from deepzig.checkpoint import loader, reader
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import ExtraTensorsWarning, ModelWeights, load_weights
from deepzig.checkpoint.names import expected_tensors
from deepzig.checkpoint.reader import DTYPE_NAMES
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.config import ModelConfig
from deepzig.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLED = Path(__file__).parents[2] / "deepzig" / "bundled"
CHECKPOINTS = sorted(path.parent for root in (GOLDEN, BUNDLED) for path in root.glob("*/config.json"))

Tensors = dict[str, np.ndarray]
SIZES: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "n_shared_experts": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 20, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
MTP = "model.layers.2"


def to_bf16(matrix: np.ndarray) -> Weight:
    return plain_weight(matrix, "bf16")


def make_tensors(
    config: ModelConfig, n_mtp_layers: int = 0, quantize: Callable[[np.ndarray], Weight] = to_bf16
) -> Tensors:
    """All tensors of a random checkpoint; embedding, head and router stay bf16."""
    rng = np.random.default_rng(0)
    expected = expected_tensors(config, n_mtp_layers)
    tensors: Tensors = {}
    for module, shape in expected.linear.items():
        matrix = rng.standard_normal(shape).astype(np.float32)
        plain = module.endswith(("embed_tokens", "head", "mlp.gate"))
        weight = to_bf16(matrix) if plain else quantize(matrix)
        tensors |= {f"{module}.{suffix}": array for suffix, array in tensors_from_weight(weight).items()}
    for name, vector_shape in expected.vector.items():
        tensors[name] = rng.standard_normal(vector_shape).astype(ml_dtypes.bfloat16)
    return tensors


def save(path: Path, tensors: Tensors) -> None:
    entries = [(name, DTYPE_NAMES[array.dtype], array.shape) for name, array in tensors.items()]
    with SafetensorsWriter(path, entries) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])


def load(directory: Path, config: ModelConfig, tensors: Tensors, strict: bool = True) -> ModelWeights:
    save(directory / "model.safetensors", tensors)
    return load_weights(open_checkpoint(directory), config, strict)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.from_dict(SIZES)


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: path.name)
def test_golden_and_bundled_checkpoints_load_completely(directory: Path) -> None:
    config = ModelConfig.from_directory(directory)
    weights = load_weights(open_checkpoint(directory), config, strict=True)
    for module, weight in weights.linear.items():
        assert np.isfinite(dequantize(weight)).all(), module
        assert not weight.codes.flags.writeable
    assert all(vector.dtype == np.float32 for vector in weights.vector.values())
    assert weights.linear["lm_head"].shape == (config.vocab_size, config.hidden_size)


def test_there_are_golden_checkpoints() -> None:
    assert {"v3_classic", "v3_fp8", "v3_sharded", "moonlight", "v2_lite", "stories"} <= {p.name for p in CHECKPOINTS}


def test_weights_and_vectors_are_those_of_the_file(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config)
    weights = load(tmp_path, config, tensors)
    assert not weights.has_mtp
    assert set(weights.linear) == set(expected_tensors(config).linear)
    assert set(weights.vector) == set(expected_tensors(config).vector)
    for module, weight in weights.linear.items():
        np.testing.assert_array_equal(dequantize(weight), tensors[f"{module}.weight"].astype(np.float32))
    for name, vector in weights.vector.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, tensors[name].astype(np.float32))


def compressed_config(bits: int, group_size: int | None) -> dict[str, Any]:
    strategy = "channel" if group_size is None else "group"
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group_size}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


FORMATS: dict[str, tuple[Callable[[np.ndarray], Weight], dict[str, Any] | None]] = {
    "f32": (lambda w: plain_weight(w, "f32"), None),
    "f16": (lambda w: plain_weight(w, "f16"), None),
    "fp8": (quantize_fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 undeclared": (quantize_fp8, None),
    "int8 channel": (lambda w: quantize_int8(w, w.shape[1]), compressed_config(8, None)),
    "int4 channel": (lambda w: quantize_int4(w, w.shape[1]), compressed_config(4, None)),
    "int8 groups undeclared": (lambda w: quantize_int8(w, group_size_for(w.shape[1])), None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_with_an_mtp_layer(name: str, tmp_path: Path) -> None:
    quantize, declared = FORMATS[name]
    config = ModelConfig.from_dict({**SIZES, "quantization_config": declared})
    weights = load(tmp_path, config, make_tensors(config, 1, quantize))
    assert weights.has_mtp
    rng = np.random.default_rng(0)
    for module, shape in expected_tensors(config, 1).linear.items():
        matrix = rng.standard_normal(shape).astype(np.float32)
        plain = module.endswith(("embed_tokens", "head", "mlp.gate"))
        expected = to_bf16(matrix) if plain else quantize(matrix)
        assert weights.linear[module].format == expected.format
        np.testing.assert_array_equal(dequantize(weights.linear[module]), dequantize(expected))


def test_config_of_another_scheme_is_refused(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "quantization_config": compressed_config(8, 64)})
    with pytest.raises(CheckpointError, match=r"stored as fp8.*declares compressed-tensors int8 in groups of 64"):
        load(tmp_path, config, make_tensors(config, 0, quantize_fp8))
    with pytest.raises(CheckpointError, match="declares quant_method 'awq'"):
        load(tmp_path, ModelConfig.from_dict({**SIZES, "quantization_config": {"quant_method": "awq"}}), {})


def test_all_missing_and_misshapen_tensors_are_reported_together(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    tensors["model.layers.0.self_attn.o_proj.weight"] = np.zeros((40, 64), np.float32)
    tensors["model.layers.1.input_layernorm.weight"] = np.zeros((65,), np.float32)
    tensors["model.layers.0.post_attention_layernorm.weight"] = np.zeros((64,), np.int32)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config, tensors)
    text = str(caught.value)
    for part in (
        "5 tensors are missing or not as config.json asks",
        "'model.norm.weight' is missing, expected shape (64,)",
        "'model.layers.1.mlp.experts.3.up_proj.weight' is missing, expected shape (32, 64)",
        "'model.layers.0.self_attn.o_proj.weight' has shape (40, 64), expected (64, 40)",
        "'model.layers.1.input_layernorm.weight' has shape (65,), expected (64,)",
        "'model.layers.0.post_attention_layernorm.weight' has dtype I32, expected F32 or F16 or BF16",
    ):
        assert part in text
    assert text.isprintable()


def test_ten_names_and_the_count(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config, {"model.norm.weight": np.zeros(64, np.float32)})
    expected = expected_tensors(config)
    n_missing = len(expected.linear) + len(expected.vector) - 1
    assert f"{n_missing} tensors are" in str(caught.value) and f"and {n_missing - 10} more" in str(caught.value)
    assert str(caught.value).count("is missing") == 10


@pytest.mark.parametrize(
    ("name", "converter"),
    [
        ("model.layers.1.mlp.switch_mlp.up_proj.weight", "MLX"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
    ],
)
def test_conversions_are_told_by_their_names(tmp_path: Path, config: ModelConfig, name: str, converter: str) -> None:
    with pytest.raises(CheckpointError, match=f"; {converter} has converted it; take the original checkpoint$"):
        load(tmp_path, config, {name: np.zeros(64, np.float32)})


def test_no_tensor_data_is_touched_before_all_headers_agree(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_tensors(config)
    tensors["lm_head.weight"] = np.zeros((41, 64), np.float32)
    monkeypatch.setattr(reader.SafetensorsFile, "array", lambda *_: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="lm_head"):
        load(tmp_path, config, tensors)


def test_fp8_weight_without_its_scale_or_with_a_misshapen_one(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "intermediate_size": 200})
    tensors = make_tensors(config, 0, quantize_fp8)
    del tensors["model.layers.0.self_attn.q_b_proj.weight_scale_inv"]
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = np.ones((1, 1), np.float32)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config, tensors)
    assert "2 tensors" in str(caught.value)
    assert "'model.layers.0.self_attn.q_b_proj.weight_scale_inv' is missing, expected shape (1, 1)" in str(caught.value)
    assert "'model.layers.0.mlp.up_proj.weight_scale_inv' has shape (1, 1), expected (2, 1)" in str(caught.value)


def test_extra_tensors(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    load(tmp_path, config, tensors)
    tensors["model.layers.0.self_attn.k_scale"] = tensors["evil\x1b[31m"] = np.zeros(1, np.float32)
    with pytest.warns(
        ExtraTensorsWarning, match=r"2 tensors that config\.json does not ask for: .*k_scale.*ignored"
    ) as seen:
        weights = load(tmp_path, config, tensors, strict=False)
    assert str(seen[0].message).isprintable() and seen[0].filename == __file__
    assert set(weights.linear) == set(expected_tensors(config).linear)
    with pytest.raises(CheckpointError, match="2 tensors that config"):
        load_weights(open_checkpoint(tmp_path), config, strict=True)


def test_mtp_layer_without_embedding_and_head_uses_the_main_ones(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config, 1)
    del tensors[f"{MTP}.embed_tokens.weight"], tensors[f"{MTP}.shared_head.head.weight"]
    weights = load(tmp_path, config, tensors)
    assert weights.has_mtp
    assert weights.linear[f"{MTP}.embed_tokens"] is weights.linear["model.embed_tokens"]
    assert weights.linear[f"{MTP}.shared_head.head"] is weights.linear["lm_head"]


def test_part_of_an_mtp_layer_is_an_error(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config, 1)
    del tensors[f"{MTP}.eh_proj.weight"], tensors[f"{MTP}.hnorm.weight"], tensors[f"{MTP}.mlp.gate.weight"]
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config, tensors)
    assert "3 tensors" in str(caught.value)
    for name in ("eh_proj", "hnorm", "mlp.gate"):
        assert f"'{MTP}.{name}.weight' is missing" in str(caught.value)


def test_fewer_mtp_layers_than_the_config_has_are_an_error(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "num_nextn_predict_layers": 2})
    with pytest.raises(CheckpointError, match="holds 1 of the 2 MTP layers"):
        load(tmp_path, config, make_tensors(config, 1))
    assert not load(tmp_path, config, make_tensors(config, 0)).has_mtp


def test_mtp_layer_that_the_config_does_not_have_is_extra(tmp_path: Path) -> None:
    with_mtp, without = (ModelConfig.from_dict({**SIZES, "num_nextn_predict_layers": n}) for n in (1, 0))
    with pytest.warns(ExtraTensorsWarning, match=r"model\.layers\.2\."):
        weights = load(tmp_path, without, make_tensors(with_mtp, 1), strict=False)
    assert not weights.has_mtp and not [name for name in weights.linear if name.startswith(MTP)]


@pytest.mark.parametrize("absent", ["lm_head", "model.embed_tokens", None])
def test_tied_embeddings(absent: str | None, tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "tie_word_embeddings": True})
    tensors = make_tensors(config)
    if absent:
        del tensors[f"{absent}.weight"]
    weights = load(tmp_path, config, tensors)
    assert (weights.linear["lm_head"] is weights.linear["model.embed_tokens"]) == (absent is not None)
    stored = tensors.get("lm_head.weight", tensors.get("model.embed_tokens.weight"))
    assert stored is not None
    np.testing.assert_array_equal(dequantize(weights.linear["lm_head"]), stored.astype(np.float32))


def test_neither_embedding_nor_head(tmp_path: Path) -> None:
    for tied in (False, True):
        config = ModelConfig.from_dict({**SIZES, "tie_word_embeddings": tied})
        tensors = make_tensors(config)
        del tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
        with pytest.raises(CheckpointError, match=r"'model\.embed_tokens\.weight' is missing"):
            load(tmp_path, config, tensors)


def test_attention_bias(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "attention_bias": True})
    tensors = make_tensors(config)
    weights = load(tmp_path, config, tensors)
    assert weights.vector["model.layers.1.self_attn.o_proj.bias"].shape == (64,)
    del tensors["model.layers.1.self_attn.o_proj.bias"]
    with pytest.raises(CheckpointError, match=r"o_proj\.bias' is missing, expected shape \(64,\)"):
        load(tmp_path, config, tensors)


def test_shards(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config, 1)
    names = list(tensors)
    weight_map = {name: f"model-0000{i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save(tmp_path / shard, {name: tensors[name] for name in names if weight_map[name] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    weights = load_weights(open_checkpoint(tmp_path), config, strict=True)
    assert weights.has_mtp
    np.testing.assert_array_equal(weights.vector["model.norm.weight"], tensors["model.norm.weight"].astype(np.float32))


def test_codes_stay_in_the_file(tmp_path: Path, config: ModelConfig) -> None:
    weights = load(tmp_path, config, make_tensors(config, 0, quantize_fp8))
    for weight in weights.linear.values():
        array: Any = weight.codes
        while isinstance(array, np.ndarray):
            assert not array.flags.owndata
            array = array.base
        assert type(array).__name__ in ("mmap", "memoryview")
        if weight.codes.nbytes % 64 == 0:
            assert weight.codes.ctypes.data % 64 == 0


def test_only_codes_and_scales_of_packed_weights_are_read(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_tensors(config, 0, lambda w: quantize_int4(w, w.shape[1]))
    array = reader.SafetensorsFile.array
    read: list[str] = []
    monkeypatch.setattr(reader.SafetensorsFile, "array", lambda file, name: read.append(name) or array(file, name))
    load(tmp_path, config, tensors)
    assert sorted(read) == sorted(name for name in tensors if not name.endswith(".weight_shape")) != sorted(tensors)


def test_nothing_here_imports_what_could_run_code_from_a_file() -> None:
    sources = sorted(Path(loader.__file__).parent.glob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"json", "mmap", "numpy", "deepzig"} <= imported
    assert not imported & {"pickle", "marshal", "shelve", "joblib", "torch", "transformers", "importlib", "runpy"}


def test_auto_map_and_code_in_the_folder_are_ignored(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**SIZES, "auto_map": {"AutoModel": "modeling_deepseek.DeepseekV3Model"}})
    (tmp_path / "modeling_deepseek.py").write_text("raise SystemExit('run')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert load(tmp_path, config, make_tensors(config)).linear["lm_head"].shape == (40, 64)
