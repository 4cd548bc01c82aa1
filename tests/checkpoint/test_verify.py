"""verify: finds what is wrong with a folder, with a manifest and without; Manifest: what it reads and refuses."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.manifest import MANIFEST_FILE, FileRecord, Manifest, fault_of, hash_of, record_of
from deepzig.checkpoint.quantize import find_non_finite
from deepzig.checkpoint.reader import DTYPES
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.verify import bytes_to_read, verify
from deepzig.errors import CheckpointError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SHARDS = Options(Recipe("int8"), 60_000)

Edit = Callable[[Path, Path, dict[str, np.ndarray | None]], Path]


@pytest.fixture
def converted(small_model: Path, tmp_path: Path) -> Path:
    convert(small_model, tmp_path / "out", SHARDS)
    return tmp_path / "out"


def only_problem(directory: Path) -> str:
    (problem,) = verify(directory).problems
    return problem


def test_what_the_converter_wrote_is_sound(converted: Path) -> None:
    read: list[int] = []
    report = verify(converted, read.append)
    assert report.problems == [] and report.remarks == []
    assert report.has_manifest and report.files == len(list(converted.glob("*.safetensors")))
    assert report.tensors == len(open_checkpoint(converted).infos)
    assert 0.9 < sum(read) / bytes_to_read(converted) < 1.2


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/config.json")))
def test_foreign_checkpoints_are_sound(name: str) -> None:
    report = verify(GOLDEN / name)
    assert report.problems == [] and not report.has_manifest


@pytest.mark.parametrize("part", ["head", "middle", "end"])
def test_a_flipped_bit_is_found(converted: Path, part: str) -> None:
    path = sorted(converted.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    position = {"head": content.index(b'"shape"') + 1, "middle": len(content) // 2, "end": -1}[part]
    content[position] ^= 4
    path.write_bytes(content)
    assert f"{path.name!r} is not what was written: its hash differs" in verify(converted).problems


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors.index.json"])
def test_a_changed_small_file_is_found(converted: Path, name: str) -> None:
    (converted / name).write_text((converted / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert only_problem(converted).startswith(f"{name!r} has ")


def test_a_missing_file_is_found(converted: Path) -> None:
    (converted / "tokenizer.json").unlink()
    assert only_problem(converted) == "'tokenizer.json' is missing"


def test_an_unfinished_conversion_is_said_to_be_one(converted: Path) -> None:
    (converted / "config.json").unlink()
    problems = verify(converted).problems
    assert "go on with --resume" in problems[0]


def test_a_foreign_file_among_ours_is_found(converted: Path) -> None:
    shutil.copy(next(converted.glob("*.safetensors")), converted / "extra.safetensors")
    assert only_problem(converted) == "'extra.safetensors' is not in the manifest"


@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_non_finite_values_are_found(small_model: Path, tmp_path: Path, edited: Edit, tensor: str) -> None:
    values = open_checkpoint(small_model).array(tensor).copy()
    values[(-1,) * values.ndim] = np.nan
    place = ", ".join(str(size - 1) for size in values.shape)
    source = edited(small_model, tmp_path / "source", {tensor: values})
    assert only_problem(source) == f"{tensor!r} holds NaN or infinity at [{place}]"


def test_fp8_codes_and_scales_are_looked_at(tmp_path: Path, edited: Edit) -> None:
    module, stored = "model.layers.0.self_attn.o_proj", open_checkpoint(GOLDEN / "v3_fp8")
    codes, scale = (stored.array(f"{module}.{name}").copy() for name in ("weight", "weight_scale_inv"))
    codes.view(np.uint8)[3, 4] = 0xFF
    scale[0, 0] = np.inf
    changed = {f"{module}.weight": codes, f"{module}.weight_scale_inv": scale}
    problems = verify(edited(GOLDEN / "v3_fp8", tmp_path / "source", changed)).problems
    assert sorted(problems) == [
        f"'{module}.weight' holds NaN or infinity at [3, 4]",
        f"'{module}.weight_scale_inv' holds NaN or infinity at [0, 0]",
    ]


@pytest.mark.parametrize("stated", [[64, 127], [128, 64]])
def test_a_stored_shape_that_contradicts_the_config_is_found(
    small_model: Path, tmp_path: Path, edited: Edit, stated: list[int]
) -> None:
    convert(small_model, tmp_path / "out", Options(Recipe("int4")))
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    name = "model.layers.1.mlp.experts.3.up_proj.weight_shape"
    problem = only_problem(edited(tmp_path / "out", tmp_path / "source", {name: np.array(stated)}))
    assert problem == f"{name!r} says {stated}, expected [64, 128]"


def test_tensors_that_do_not_fit_the_config_are_found(small_model: Path, tmp_path: Path, edited: Edit) -> None:
    changes: dict[str, np.ndarray | None] = {"model.norm.weight": None, "model.extra": np.zeros(2, np.float32)}
    source = edited(small_model, tmp_path / "source", changes)
    assert "'model.norm.weight' is missing" in only_problem(source)
    shutil.rmtree(source)
    report = verify(edited(small_model, source, {"model.extra": np.zeros(2, np.float32)}))
    assert report.problems == [] and "model.extra" in report.remarks[0]


def test_mtp_layers_that_are_not_there_are_found(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"num_nextn_predict_layers": 2}), encoding="utf-8")
    assert "1 of the 2 MTP layers" in only_problem(folder)


def test_what_is_no_file_beside_the_weights_is_no_fault_of_theirs(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    (folder / "folder.safetensors").mkdir()
    (folder / "nowhere.safetensors").symlink_to("nowhere")
    assert bytes_to_read(folder) == (folder / "model.safetensors").stat().st_size
    assert verify(folder).problems == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_may_be_listed_but_not_searched(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    folder.chmod(0o600)
    try:
        assert bytes_to_read(folder) == 0
        assert "Permission denied" in only_problem(folder)
    finally:
        folder.chmod(0o700)


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v2_lite", tmp_path / "cut")
    path = tmp_path / "cut/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes of data are stored" in only_problem(tmp_path / "cut")


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        verify(tmp_path / "absent")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_non_finite_values_of_any_dtype_have_a_position(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.checkpoint.quantize.SLAB_VALUES", 100)
    values = np.ones((30, 11), np.float32).astype(DTYPES[dtype])
    assert find_non_finite(values) is None
    values[25, 7] = np.nan
    assert find_non_finite(values) == (25, 7)


def test_greatest_values_are_finite() -> None:
    assert find_non_finite(np.array([0, 255], np.uint8)) is None
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        greatest = ml_dtypes.finfo(dtype).max
        assert find_non_finite(np.array([greatest, -greatest]).astype(dtype)) is None


# ---- manifest --------------------------------------------------------------------------------------------------------


def manifest_of(directory: Path) -> Manifest:
    manifest = Manifest(directory, {"options": {"format": "int8"}}, [])
    manifest.rewrite([])
    for name in ("a", "b"):
        (directory / name).write_text(name * 5, encoding="utf-8")
        manifest.add(record_of(directory / name, n_tensors=3))
    return manifest


def test_manifest_is_read_as_written(tmp_path: Path) -> None:
    written, read = manifest_of(tmp_path), Manifest.read(tmp_path)
    assert read is not None
    assert (read.header, read.records) == (written.header, written.records)
    assert read.records["b"] == FileRecord("b", 5, hash_of(tmp_path / "b"), 3)
    read.check_header({"options": {"format": "int8"}})
    assert Manifest.read(tmp_path / "a") is None


def test_a_line_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    manifest_of(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_bytes(path.read_bytes()[:-9])
    read = Manifest.read(tmp_path)
    assert read is not None and list(read.records) == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"deepzig_manifest": 2}\n',
        b"{}\n",
        b'{"deepzig_manifest": 1}\n{"x": 1}\n',
        b"\xff\n",
        b'{"deepzig_manifest": 1}\n{"file": 5, "nbytes": 1, "sha256": ""}\n',
        b'{"deepzig_manifest": 1}\n[1]\n',
        b'{"deepzig_manifest": 1}\n{"file": "a", "nbytes": null, "sha256": ""}\n',
    ],
)
def test_other_files_are_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest|version"):
        Manifest.read(tmp_path)


def test_a_manifest_is_a_small_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_FILE)
    with pytest.raises(CheckpointError, match="no regular file"):
        Manifest.read(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    with (tmp_path / MANIFEST_FILE).open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "c"])
def test_a_record_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_text("x", encoding="utf-8")
    directory = tmp_path / "inner"
    directory.mkdir()
    assert fault_of(directory, FileRecord(name, 1, "")) == "is missing"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_record_of_a_name_that_cannot_be_is_a_fault(tmp_path: Path, name: str) -> None:
    assert re.match("is missing|cannot be read", fault_of(tmp_path, FileRecord(name, 1, "")) or "")


def test_a_changed_header_is_described(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, {"options": {f"o{i}": i for i in range(6)}}, [])
    with pytest.raises(CheckpointError, match=r"options.o0 was 0, is 1.*and 2 more") as caught:
        manifest.check_header({"options": {f"o{i}": i + 1 for i in range(6)}})
    assert "\n" not in str(caught.value)


def test_lines_are_json(converted: Path) -> None:
    header, *records = (json.loads(line) for line in (converted / MANIFEST_FILE).read_text("utf-8").splitlines())
    assert header["options"]["format"] == "int8"
    assert [record["file"] for record in records][-1] == "config.json"
    assert all(len(record["sha256"]) == 64 for record in records)
