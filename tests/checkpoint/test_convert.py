"""convert: every format, what comes along, what is dropped, and sources that cannot be converted."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import deepzig
from bench.reference_rounding import quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import dequantize
from deepzig._kernels.weight import Weight
from deepzig.checkpoint.convert import Options, Progress, convert
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import ModelWeights, load_weights
from deepzig.checkpoint.plan import Item
from deepzig.checkpoint.quantize import row_slabs
from deepzig.checkpoint.recipe import FORMATS, Recipe
from deepzig.checkpoint.schemes import CHANNEL, Scheme
from deepzig.checkpoint.verify import verify
from deepzig.config import ModelConfig
from deepzig.errors import CheckpointError, RequestError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
HEAD_COPY = "model.layers.2.shared_head.head"
ATOL = 2e-4

Edit = Callable[[Path, Path, dict[str, np.ndarray | None]], Path]


def converted(source: Path, destination: Path, recipe: Recipe, **options: Any) -> ModelWeights:
    convert(source, destination, Options(recipe, **options), n_threads=2)
    return load(destination)


def load(directory: Path) -> ModelWeights:
    return load_weights(open_checkpoint(directory), ModelConfig.from_directory(directory), strict=True)


@pytest.mark.parametrize("wanted", FORMATS)
def test_result_is_sound_and_close(small_model: Path, tmp_path: Path, wanted: str) -> None:
    weights, original = converted(small_model, tmp_path / "out", Recipe(wanted)), load(small_model)
    bounds = {"int8": 0.01, "int4": 0.12, "fp8": 0.04, "fp16": 1e-6, "bf16": 0}
    for module, weight in original.linear.items():
        exact, found = dequantize(weight), dequantize(weights.linear[module])
        assert np.linalg.norm(found - exact) <= bounds[wanted] * np.linalg.norm(exact), module
    for name, vector in original.vector.items():
        np.testing.assert_array_equal(weights.vector[name], vector)
    assert verify(tmp_path / "out").problems == []


def test_values_are_those_of_the_reference_functions(small_model: Path, tmp_path: Path) -> None:
    original = {module: dequantize(weight) for module, weight in load(small_model).linear.items()}
    mix = converted(small_model, tmp_path / "int4", Recipe("int4")).linear
    fp8 = converted(small_model, tmp_path / "fp8", Recipe("fp8")).linear
    expert, dense = "model.layers.1.mlp.experts.3.up_proj", "model.layers.0.mlp.down_proj"
    ragged = "model.layers.0.self_attn.q_b_proj"
    for found, want in [
        (mix[expert], quantize_int4(original[expert], 64)),
        (mix[dense], quantize_int8(original[dense], 64)),
        (mix[ragged], quantize_int8(original[ragged], 40)),
        (fp8[dense], quantize_fp8(original[dense])),
        (fp8[ragged], quantize_fp8(original[ragged])),
    ]:
        assert (found.format, found.group_size, found.offset) == (want.format, want.group_size, want.offset)
        assert found.scale is not None and want.scale is not None
        np.testing.assert_array_equal(found.codes, want.codes)
        np.testing.assert_array_equal(found.scale, want.scale)


@pytest.mark.parametrize("wanted", ["int8", "fp8"])
def test_slabs_of_rows_and_threads_do_not_change_a_byte(
    small_model: Path, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(small_model, tmp_path / "one", Options(Recipe(wanted)), n_threads=1)
    monkeypatch.setattr("deepzig.checkpoint.quantize.SLAB_VALUES", 1000)
    convert(small_model, tmp_path / "two", Options(Recipe(wanted)), n_threads=2)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_slabs_are_small_whatever_the_matrix() -> None:
    shape = (129280, 7168)  # V3's head
    codes = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint16), shape, (2 * shape[1], 2), writeable=False)
    for wanted in ("int8", "fp8"):
        item = Item("lm_head", Scheme(wanted, 128), Weight("bf16", shape, codes), (), (), 0, 0)
        slabs = row_slabs(item)
        assert max(rows.stop - rows.start for rows in slabs) * shape[1] <= 2 << 20
        assert [rows.start for rows in slabs[1:]] == [rows.stop for rows in slabs[:-1]]
        assert (slabs[0].start, slabs[-1].stop) == (0, shape[0])


@pytest.mark.parametrize("name", ["v3_fp8", "kimi_k2"])
def test_fp8_sources_are_decoded_exactly(tmp_path: Path, name: str) -> None:
    source = load(GOLDEN / name)
    weights = converted(GOLDEN / name, tmp_path / "out", Recipe("int8"))
    for module, weight in source.linear.items():
        found = weights.linear[module]
        if found.format == "int8":
            want = quantize_int8(dequantize(weight), found.group_size)
            assert want.scale is not None and found.scale is not None
            np.testing.assert_array_equal(found.codes, want.codes)
            np.testing.assert_array_equal(found.scale, want.scale)


def test_fp8_to_fp8_keeps_every_byte(tmp_path: Path) -> None:
    weights, source = converted(GOLDEN / "v3_fp8", tmp_path / "out", Recipe("fp8")), load(GOLDEN / "v3_fp8")
    for module, weight in source.linear.items():
        found = weights.linear[module]
        assert found.format == weight.format
        np.testing.assert_array_equal(found.codes, weight.codes)
        if weight.scale is not None:
            np.testing.assert_array_equal(found.scale, weight.scale)


@pytest.mark.parametrize("recipe", [Recipe("int4"), Recipe("int4", 32), Recipe("int8", CHANNEL)])
def test_integers_of_the_wanted_groups_keep_every_byte(small_model: Path, tmp_path: Path, recipe: Recipe) -> None:
    converted(small_model, tmp_path / "once", recipe)
    again = dataclasses.replace(recipe, include=(("*.0.self_attn.o_proj", recipe.format),))
    weights = converted(tmp_path / "once", tmp_path / "twice", again)
    once, twice = open_checkpoint(tmp_path / "once"), open_checkpoint(tmp_path / "twice")
    for name in once.infos:
        if ".0.self_attn.o_proj." not in name:
            assert once.array(name).tobytes() == twice.array(name).tobytes(), name
    assert weights.linear["model.layers.0.self_attn.o_proj"].format == recipe.format
    assert verify(tmp_path / "twice").problems == []


def formats_and_groups(weights: ModelWeights) -> set[tuple[str, int]]:
    """Formats and group sizes of the routed experts."""
    return {(w.format, w.group_size) for module, w in weights.linear.items() if ".mlp.experts." in module}


def test_integers_of_other_groups_are_rounded_again_on_request_only(small_model: Path, tmp_path: Path) -> None:
    converted(small_model, tmp_path / "once", Recipe("int4", 32))
    converted(tmp_path / "once", tmp_path / "twice", Recipe("int4"))
    once, twice = (tmp_path / name / "model.safetensors" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()
    for recipe in (Recipe("int4", 64), Recipe("int8")):
        expected = {(recipe.format, 64)}
        assert formats_and_groups(converted(tmp_path / "once", tmp_path / recipe.format, recipe)) == expected


@pytest.mark.parametrize("recipe", [Recipe("int4"), Recipe("int4", 32), Recipe("int8", exclude=("*.mlp.experts.*",))])
def test_int4_with_shapes_of_32_bits_is_kept_too(
    small_model: Path, tmp_path: Path, edited: Edit, recipe: Recipe
) -> None:
    converted(small_model, tmp_path / "int4", Recipe("int4", 32))
    stored = open_checkpoint(tmp_path / "int4")
    shapes = {name: stored.array(name).astype(np.int32) for name in stored.infos if name.endswith(".weight_shape")}
    source = edited(tmp_path / "int4", tmp_path / "source", dict(shapes))
    (source / "deepzig-manifest.jsonl").unlink()
    assert formats_and_groups(converted(source, tmp_path / "out", recipe)) == {("int4", 32)}
    assert open_checkpoint(tmp_path / "out").info("model.layers.1.mlp.experts.3.up_proj.weight_shape").dtype == "I32"
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize("wanted", ["int8", "bf16"])
def test_excluded_integers_stay_as_they_are(small_model: Path, tmp_path: Path, wanted: str) -> None:
    once = converted(small_model, tmp_path / "once", Recipe("int4")).linear
    recipe = Recipe(wanted, exclude=("*.mlp.experts.*", "*.0.self_attn.q_b_proj"))
    twice = converted(tmp_path / "once", tmp_path / "twice", recipe).linear
    for module, weight_format in (("1.mlp.experts.3.up_proj", "int4"), ("0.self_attn.q_b_proj", "int8")):
        one, two = (weights[f"model.layers.{module}"] for weights in (once, twice))
        assert (one.format, one.group_size) == (two.format, two.group_size) and two.format == weight_format
        np.testing.assert_array_equal(one.codes, two.codes)
    assert twice["model.layers.0.self_attn.o_proj"].format == wanted
    fp8 = converted(tmp_path / "once", tmp_path / "fp8", Recipe("fp8", exclude=("*.mlp.experts.*",))).linear
    assert fp8["model.layers.1.mlp.experts.3.up_proj"].format == "bf16"


def test_excluded_fp8_modules_become_bf16_among_integers(tmp_path: Path) -> None:
    weights = converted(GOLDEN / "v3_fp8", tmp_path / "out", Recipe("int8", exclude=("*.o_proj",)))
    formats = {weight.format for module, weight in weights.linear.items() if module.endswith("o_proj")}
    assert formats == {"bf16"}


def test_fp8_gives_the_logits_of_its_decoded_values(small_model: Path, tmp_path: Path) -> None:
    source = copy_without_tokenizer(small_model, tmp_path / "source")
    weights = converted(source, tmp_path / "fp8", Recipe("fp8"))
    tensors = {f"{module}.weight": dequantize(weight) for module, weight in weights.linear.items()}
    safetensors.numpy.save_file(tensors | weights.vector, make_folder(tmp_path / "f32") / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path / "f32")
    ids = np.random.default_rng(0).integers(0, 96, 50).tolist()
    logits = [deepzig.load(tmp_path / name).logits(ids) for name in ("fp8", "f32")]
    np.testing.assert_allclose(*logits, rtol=0, atol=ATOL)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def copy_without_tokenizer(source: Path, destination: Path) -> Path:
    """The model alone: the texts that the fixture gives for a tokenizer are none."""
    make_folder(destination)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, destination)
    return destination


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/config.json")))
@pytest.mark.parametrize("wanted", ["int8", "int4", "fp8"])
def test_every_family_and_dtype_converts(tmp_path: Path, name: str, wanted: str) -> None:
    convert(GOLDEN / name, tmp_path / "out", Options(Recipe(wanted)))
    expected = np.load(GOLDEN / name / "expected.npz")
    logits = deepzig.load(tmp_path / "out", strict=True).logits(expected["ids"].tolist())
    error = np.median(np.abs(logits - expected["logits"]))  # not the mean: a token may go to other experts
    assert error < {"int8": 0.05, "int4": 0.5, "fp8": 0.3}[wanted] * expected["logits"].std()


# ---- what lies beside the weights ------------------------------------------------------------------------------------


def test_what_comes_along(small_model: Path, tmp_path: Path) -> None:
    convert(small_model, tmp_path / "out", Options(Recipe("int8")))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "deepzig-manifest.jsonl", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "generation_config.json", "LICENSE",
    }  # fmt: skip
    assert (tmp_path / "out/chat_template.jinja").read_text(encoding="utf-8") == "of chat_template.jinja"
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))


def test_names_and_texts_that_utf8_cannot_write(small_model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(small_model, tmp_path / "in")
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(raw | {"note": "\ud800"}), encoding="utf-8")
    name = os.fsdecode(b"LICENSE-\xff")
    (source / name).write_text("free", encoding="utf-8")
    convert(source, tmp_path / "out", Options(Recipe("int8")))
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["note"] == "\ud800"
    assert (tmp_path / "out" / name).read_text(encoding="utf-8") == "free"
    assert verify(tmp_path / "out").problems == []


def test_a_link_out_of_the_folder_is_not_followed(small_model: Path, tmp_path: Path) -> None:
    source = copy_without_tokenizer(small_model, tmp_path / "source")
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="link out of the folder"):
        convert(source, tmp_path / "out", Options(Recipe("int8")))
    assert not (tmp_path / "out").exists()


def test_links_of_a_hub_cache_are_followed(small_model: Path, tmp_path: Path) -> None:
    blobs, snapshot = make_folder(tmp_path / "blobs"), tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(small_model / name, blobs / f"of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/of-{name}")
    convert(snapshot, tmp_path / "out", Options(Recipe("int8")))
    assert not (tmp_path / "out/tokenizer.json").is_symlink()
    assert verify(tmp_path / "out").problems == []


def test_copies_of_embedding_and_head_are_dropped(small_model: Path, tmp_path: Path) -> None:
    assert f"{HEAD_COPY}.weight" in open_checkpoint(small_model).infos
    weights = converted(small_model, tmp_path / "out", Recipe("int8"))
    names = list(open_checkpoint(tmp_path / "out").infos)
    assert not [name for name in names if name.startswith((HEAD_COPY, "model.layers.2.embed_tokens"))]
    assert weights.has_mtp and weights.linear[HEAD_COPY] is weights.linear["lm_head"]


def test_a_head_of_its_own_stays(small_model: Path, tmp_path: Path, edited: Edit) -> None:
    other = open_checkpoint(small_model).array("lm_head.weight").copy()
    other[0, 0] += 1
    source = edited(small_model, tmp_path / "source", {f"{HEAD_COPY}.weight": other})
    weights = converted(source, tmp_path / "out", Recipe("int8"))
    assert weights.linear[HEAD_COPY].format == "int8"
    assert weights.linear[HEAD_COPY] is not weights.linear["lm_head"]


def test_tied_embeddings_are_stored_once_and_not_rounded(tmp_path: Path) -> None:
    weights = converted(GOLDEN / "v3_sharded", tmp_path / "out", Recipe("int8"))
    assert weights.linear["lm_head"] is weights.linear["model.embed_tokens"]
    assert weights.linear["lm_head"].format == "f16"


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 60_000])
def test_shards(small_model: Path, tmp_path: Path, shard_bytes: int) -> None:
    convert(small_model, tmp_path / "whole", Options(Recipe("int8")))
    convert(small_model, tmp_path / "shards", Options(Recipe("int8"), shard_bytes))
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    whole, shards = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "shards")
    assert sorted(whole.infos) == sorted(shards.infos)
    for name in whole.infos:
        assert whole.array(name).tobytes() == shards.array(name).tobytes()
        if name.endswith("_packed"):  # a matrix and its scales lie together
            assert shards.path_of(name) == shards.path_of(name.replace("_packed", "_scale"))
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == shards.nbytes


def test_more_files_than_can_be_read_are_refused(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepzig.checkpoint.plan.MAX_SHARDS", 50)
    with pytest.raises(RequestError, match=r"\d+ files of 1 bytes are more than 50; allow larger ones"):
        convert(small_model, tmp_path / "out", Options(Recipe("int8"), 1))
    assert not (tmp_path / "out").exists()


def test_data_is_aligned(small_model: Path, tmp_path: Path) -> None:
    convert(small_model, tmp_path / "out", Options(Recipe("int4")))
    infos = open_checkpoint(tmp_path / "out").infos.values()
    assert all(info.start % 64 == 0 for info in infos if info.nbytes % 64 == 0)


def test_progress_ends_with_all_bytes_and_tensors(small_model: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    convert(small_model, tmp_path / "out", Options(Recipe("int8"), 30_000), progress=seen.append)
    assert [state.bytes_done for state in seen] == sorted(state.bytes_done for state in seen)
    last = seen[-1]
    assert (last.bytes_done, last.tensors_done) == (last.bytes_total, last.tensors_total)


# ---- sources that cannot be converted --------------------------------------------------------------------------------


def with_value(source: Path, tensor: str, place: tuple[int, ...], value: float) -> dict[str, np.ndarray | None]:
    """The change of one value, for `edited`."""
    values = open_checkpoint(source).array(tensor).copy()
    values[place] = value
    return {tensor: values}


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model.layers.1.mlp.experts.2.down_proj.weight", (100, 63)),
        ("model.layers.1.mlp.gate.weight", (3, 1)),
        ("model.norm.weight", (7,)),
    ],
)
def test_non_finite_values_are_named(
    small_model: Path, tmp_path: Path, edited: Edit, tensor: str, place: tuple[int, ...], value: float
) -> None:
    source = edited(small_model, tmp_path / "source", with_value(small_model, tensor, place, value))
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out", Options(Recipe("int8")))
    assert f"{tensor!r} holds NaN or infinity at [{', '.join(map(str, place))}]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_non_finite_scale_is_named(tmp_path: Path, edited: Edit) -> None:
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    source = edited(GOLDEN / "v3_fp8", tmp_path / "source", with_value(GOLDEN / "v3_fp8", name, (1, 0), np.inf))
    with pytest.raises(CheckpointError, match=r"o_proj.weight_scale_inv' holds NaN or infinity at \[1, 0\]"):
        convert(source, tmp_path / "out", Options(Recipe("int8")))


def test_non_finite_values_may_be_allowed(small_model: Path, tmp_path: Path, edited: Edit) -> None:
    tensor = "model.layers.0.mlp.down_proj.weight"
    values = open_checkpoint(small_model).array(tensor).copy()
    values[5, 3], values[6, 70] = np.nan, -np.inf
    source = edited(small_model, tmp_path / "source", {tensor: values})
    weights = converted(source, tmp_path / "out", Recipe("int8"), allow_nonfinite=True)
    decoded = dequantize(weights.linear["model.layers.0.mlp.down_proj"])
    assert np.isfinite(decoded).all()
    assert decoded[5, 3] == 0
    group = np.delete(values[6, 64:128].astype(np.float32), 6)
    np.testing.assert_allclose(decoded[6, 70], -np.abs(group).max(), rtol=0.01)
    kept = converted(source, tmp_path / "bf16", Recipe("bf16"), allow_nonfinite=True)
    assert np.isnan(dequantize(kept.linear["model.layers.0.mlp.down_proj"])[5, 3])


def test_float16_that_overflows_is_named(small_model: Path, tmp_path: Path, edited: Edit) -> None:
    source = edited(small_model, tmp_path / "source", with_value(small_model, "lm_head.weight", (0, 0), 1e5))
    with pytest.raises(CheckpointError, match=r"'lm_head': a weight exceeds 65504.*use bf16"):
        convert(source, tmp_path / "out", Options(Recipe("fp16")))


def test_a_source_that_lacks_a_tensor_leaves_nothing_behind(small_model: Path, tmp_path: Path, edited: Edit) -> None:
    source = edited(small_model, tmp_path / "source", {"model.layers.0.self_attn.o_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"o_proj.*is missing"):
        convert(source, tmp_path / "out", Options(Recipe("int8")))
    assert not (tmp_path / "out").exists()


def test_importance_reaches_the_search(small_model: Path, tmp_path: Path) -> None:
    module = "model.layers.1.mlp.experts.0.gate_proj"
    counts = np.linspace(0.01, 2, 128).astype(np.float32)
    weights = converted(small_model, tmp_path / "out", Recipe("int4"), importance={module: counts})
    original = dequantize(load(small_model).linear[module])
    np.testing.assert_array_equal(weights.linear[module].codes, quantize_int4(original, 64, counts).codes)
    assert not np.array_equal(weights.linear[module].codes, quantize_int4(original, 64).codes)

