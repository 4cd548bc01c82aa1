"""SafetensorsWriter: the safetensors library reads what it writes, data is aligned, and a failure leaves nothing."""

import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.checkpoint import writer as writer_module
from deepzig.checkpoint.reader import DTYPES, SafetensorsFile
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.errors import CheckpointError, ResourceError

Entries = list[tuple[str, str, tuple[int, ...]]]
ENTRIES: Entries = [
    ("scale", "BF16", (3, 1)),
    ("weight", "F32", (3, 64)),
    ("shape", "I64", (2,)),
    ("codes", "F8_E4M3", (7, 9)),
    ("packed", "I32", (16, 4)),
    ("scalar", "F32", ()),
    ("nothing", "BF16", (0, 5)),
]


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    raw = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return raw.view(DTYPES[dtype]).reshape(shape)


def write(path: Path, entries: Entries, metadata: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    tensors = {name: random_tensor(dtype, shape) for name, dtype, shape in entries}
    with SafetensorsWriter(path, entries, metadata) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return tensors


def test_library_reads_the_file(tmp_path: Path) -> None:
    tensors = write(tmp_path / "a.safetensors", ENTRIES, {"format": "pt"})
    read = dict(safetensors.deserialize((tmp_path / "a.safetensors").read_bytes()))
    assert set(read) == set(tensors)
    for name, dtype, shape in ENTRIES:
        assert (read[name]["dtype"], tuple(read[name]["shape"])) == (dtype, shape)
        assert bytes(read[name]["data"]) == tensors[name].tobytes()
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_own_reader_reads_the_file_without_copies(tmp_path: Path) -> None:
    tensors = write(tmp_path / "a.safetensors", ENTRIES)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {}
    for name, tensor in tensors.items():
        assert file.array(name).tobytes() == tensor.tobytes()
        assert not tensor.size or np.shares_memory(file.array(name), file.array(name))


DIMENSIONS = st.lists(st.integers(0, 70), max_size=3).map(tuple)
SHAPES = st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32", "F64", "F8_E4M3"]), DIMENSIONS), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES)
def test_alignment(tmp_path: Path, shapes: list[tuple[str, tuple[int, ...]]]) -> None:
    entries = [(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(shapes)]
    write(tmp_path / "a.safetensors", entries)
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 64 == 0
    for info in SafetensorsFile(tmp_path / "a.safetensors").tensors.values():
        assert info.start % DTYPES[info.dtype].itemsize == 0
        assert info.nbytes % 64 or info.start % 64 == 0


def test_chunks_and_any_order(tmp_path: Path) -> None:
    entries: Entries = [("a", "F32", (6, 16)), ("b", "BF16", (5,)), ("c", "U8", (64,))]
    tensors = {name: random_tensor(dtype, shape) for name, dtype, shape in entries}
    with SafetensorsWriter(tmp_path / "a.safetensors", entries) as writer:
        writer.write("b", tensors["b"])
        writer.write("a", (tensors["a"][i : i + 4] for i in range(0, 6, 4)))
        writer.write("c", [tensors["c"].reshape(8, 8)[:, :].T.T])
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert all(file.array(name).tobytes() == tensor.tobytes() for name, tensor in tensors.items())


def test_views_that_are_not_contiguous(tmp_path: Path) -> None:
    tensor = random_tensor("U8", (8, 16)).T
    with SafetensorsWriter(tmp_path / "a.safetensors", [("a", "U8", (16, 8))]) as writer:
        writer.write("a", tensor)
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "a.safetensors").array("a"), tensor)


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with SafetensorsWriter(path, [("a", "U8", (4,))]) as writer:
        writer.write("a", np.zeros(4, np.uint8))
        assert path.read_bytes() == b"old"
    assert path.stat().st_size == writer.nbytes
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(tmp_path / "a.safetensors", [("a", "U8", (4,))]):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


ZEROS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "1 tensors were not written, such as 'a'"),
        (ZEROS.T, "shape"),
        (ZEROS.astype(np.float64), "dtype F32, not float64"),
        (ZEROS.view(np.uint32), "dtype F32, not uint32"),
        ([ZEROS[:1]], "12 bytes or more, not 24"),
        ([ZEROS, ZEROS[:1]], "36 bytes or more, not 24"),
    ],
)
def test_data_that_does_not_fit_the_entry(data: object, message: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=message),
        SafetensorsWriter(tmp_path / "a.safetensors", [("a", "F32", (2, 3))]) as writer,
    ):
        if data is not None:
            writer.write("a", data)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="written twice"),
        SafetensorsWriter(tmp_path / "a.safetensors", [("a", "F32", (2, 3))]) as writer,
    ):
        writer.write("a", ZEROS)
        writer.write("a", ZEROS)


@pytest.mark.parametrize(
    "entries",
    [
        [("a", "U8", (1,)), ("a", "U8", (1,))],
        [("__metadata__", "U8", (1,))],
        [("a", "F4", (1,))],
        [("a", "U8", (-1,))],
    ],
)
def test_entries_that_are_no_tensors(entries: Entries, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unique|no tensor"):
        SafetensorsWriter(tmp_path / "a.safetensors", entries)
    assert os.listdir(tmp_path) == []


def test_full_disk_says_what_it_needs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module.os, "fsync", no_room)
    with (
        pytest.raises(ResourceError, match=r"needs \d+ bytes, [\d.,]+ GB are free") as caught,
        SafetensorsWriter(tmp_path / "a.safetensors", [("a", "F32", (2, 3))]) as writer,
    ):
        writer.write("a", ZEROS)
    assert caught.value.exit_code == 4
    assert os.listdir(tmp_path) == []


def test_file_size_limit_in_the_middle_of_a_tensor(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with (
            pytest.raises(ResourceError, match="needs"),
            SafetensorsWriter(tmp_path / "a.safetensors", [("a", "U8", (1 << 20,))]) as writer,
        ):
            writer.write("a", np.zeros(1 << 20, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        SafetensorsWriter(tmp_path / "none" / "a.safetensors", [])


def test_metadata_and_odd_names_survive(tmp_path: Path) -> None:
    metadata, name = {"key": 'va"lue\n✓'}, 'na"me\n✓'
    write(tmp_path / "a.safetensors", [(name, "U8", (1,))], metadata)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == metadata and list(file.tensors) == [name]
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"] == metadata
