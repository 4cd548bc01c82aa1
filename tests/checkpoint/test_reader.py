"""SafetensorsFile on bytes made by hand: what it hands out, and that every malformed file is a CheckpointError."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.checkpoint import reader
from deepzig.checkpoint.reader import DTYPES, SafetensorsFile
from deepzig.errors import CheckpointError, ResourceError


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_bytes(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def open_bytes(directory: Path, content: bytes) -> SafetensorsFile:
    path = directory / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"

BAD_FILES = {
    "empty": (b"", "too few"),
    "seven bytes": (b"\x02" + b"\0" * 6, "too few"),
    "length 2^63": (file_bytes(b"{}", length=1 << 63), "claims a header"),
    "length over the cap": (file_bytes(b"{}", length=reader.MAX_HEADER_BYTES + 1), "claims a header"),
    "length past the end": (file_bytes(b"{}", length=3), "truncated"),
    "Git LFS pointer": (LFS_POINTER, "is a Git LFS pointer, .*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page, it starts with .*<!DOCTYPE html>"),
    "no object": (file_bytes(b"[]"), "JSON object"),
    "leading space": (file_bytes(b" {}"), "JSON object"),
    "no header": (file_bytes(b""), "JSON object"),
    "no JSON": (file_bytes(b"{"), "no valid JSON"),
    "UTF-16": (file_bytes("{}".encode("utf-16-le")), "no valid JSON"),
    "invalid UTF-8": (file_bytes(b'{"\xff":1}'), "no valid JSON"),
    "nested 5,000 deep": (file_bytes(nested(5000)), "nested"),
    "nested 100,000 deep": (file_bytes(nested(100_000)), "nested"),
    "integer of 5,000 digits": (file_bytes(b'{"a":' + b"9" * 5000 + b"}"), "no valid JSON"),
    "duplicate tensor": (
        file_bytes(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"abcd"),
        "'a' occurs twice",
    ),
    "duplicate field": (file_bytes(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "twice"),
    "metadata no object": (file_bytes({"__metadata__": []}), "__metadata__"),
    "metadata value no string": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry no object": (file_bytes({"a": [1]}), "dtype, shape and data_offsets"),
    "field missing": (file_bytes({"a": {"dtype": "U8", "shape": [0]}}), "dtype, shape and data_offsets"),
    "field too many": (file_bytes({"a": {**entry(), "x": 1}}, b"abcd"), "dtype, shape and data_offsets"),
    "unknown dtype": (file_bytes({"a": entry("F4")}, b"abcd"), "dtype 'F4'"),
    "dtype no string": (file_bytes({"a": entry(["U8"])}, b"abcd"), "dtype"),
    "negative size": (file_bytes({"a": entry(shape=[-4])}, b"abcd"), "shape"),
    "two negative sizes": (file_bytes({"a": entry(shape=[-2, -2])}, b"abcd"), "shape"),
    "float size": (file_bytes({"a": entry(shape=[4.0])}, b"abcd"), "shape"),
    "bool size": (file_bytes({"a": entry(shape=[True, 4])}, b"abcd"), "shape"),
    "NaN size": (file_bytes(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'), "shape"),
    "shape no list": (file_bytes({"a": entry(shape="4")}, b"abcd"), "shape"),
    "nine dimensions": (file_bytes({"a": entry(shape=[1] * 8 + [4])}, b"abcd"), "shape"),
    "product overflows 64 bits": (file_bytes({"a": entry("F64", [1 << 62, 8], [0, 0])}), "shape"),
    "product overflows to the stored size": (file_bytes({"a": entry(shape=[(1 << 62) + 1, 4])}, b"abcd"), "shape"),
    "zero times overflow": (file_bytes({"a": entry(shape=[0, 1 << 62], offsets=[0, 0])}), "too large"),
    "three offsets": (file_bytes({"a": entry(offsets=[0, 2, 4])}, b"abcd"), "data_offsets"),
    "offsets no list": (file_bytes({"a": entry(offsets=4)}, b"abcd"), "data_offsets"),
    "float offset": (file_bytes({"a": entry(offsets=[0, 4.0])}, b"abcd"), "data_offsets"),
    "negative offset": (file_bytes({"a": entry(offsets=[-4, 0])}, b"abcd"), "data_offsets"),
    "end before begin": (file_bytes({"a": entry(offsets=[4, 0])}, b"abcd"), "before they begin"),
    "offset of 4,300 digits": (file_bytes({"a": entry(offsets=[0, 10**4299])}, b"abcd"), "only 4 bytes"),
    "bytes too few for the shape": (file_bytes({"a": entry(shape=[5])}, b"abcd"), r"shape \[5\] of U8, but 4 bytes"),
    "bytes too few for the dtype": (file_bytes({"a": entry("F32")}, b"abcd"), "of F32, but 4 bytes"),
    "truncated by one byte": (file_bytes({"a": entry()}, b"abc"), "only 3 bytes"),
    "trailing byte": (file_bytes({"a": entry()}, b"abcde"), "tensors end at"),
    "data without tensors": (file_bytes({}, b"a"), "tensors end at"),
    "overlap": (
        file_bytes({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[3], offsets=[1, 4])}, b"abcd"),
        "'b' .* overlaps",
    ),
    "the same bytes twice": (file_bytes({"a": entry(), "b": entry()}, b"abcd"), "overlaps"),
    "hole": (
        file_bytes({"a": entry(shape=[1], offsets=[0, 1]), "b": entry(shape=[2], offsets=[2, 4])}, b"abcd"),
        "'b' .* hole",
    ),
    "hole at the start": (file_bytes({"a": entry(shape=[2], offsets=[2, 4])}, b"abcd"), "hole"),
    "name of 1,025 characters": (file_bytes({"x" * 1025: entry()}, b"abcd"), "1025 characters"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_malformed_file_is_one_checkpoint_error(case: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        open_bytes(tmp_path, content)
    text = str(caught.value)
    assert "model.safetensors" in text and len(text) < 600 and text.isprintable()


def test_too_many_tensors_are_refused_before_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {str(i): entry(shape=[0], offsets=[0, 0]) for i in range(11)}
    monkeypatch.setattr(reader, "MAX_TENSORS", 11)
    assert len(open_bytes(tmp_path, file_bytes(header)).tensors) == 11
    monkeypatch.setattr(reader, "MAX_TENSORS", 10)
    monkeypatch.setattr(reader.json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match="more than 10 tensors"):
        open_bytes(tmp_path, file_bytes(header))


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\u202eright to left", "lone \ud800"])
def test_names_are_escaped_in_messages(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_bytes(tmp_path, file_bytes({name: entry("X")}, b"abcd"))
    assert str(caught.value).isprintable()


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path, message in [
        ("none.safetensors", "cannot read"),
        (".", "regular file"),
        ("pipe.safetensors", "regular file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            SafetensorsFile(tmp_path / path)


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr(reader, "_map", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .* \(Permission denied\); check its permissions$"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_every_dtype_comes_back_as_the_library_wrote_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64")
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(DTYPES[name]) for name in names}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"format": "np"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "np"}
    assert set(file.tensors) == set(arrays)
    for name, array in arrays.items():
        assert file.tensors[name].dtype == name
        assert file.array(name).dtype == array.dtype
        np.testing.assert_array_equal(file.array(name), array)


def test_fp8_is_viewed_through_ml_dtypes(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, file_bytes({"a": entry("F8_E4M3", [2, 2])}, bytes([0x38, 0xB8, 0x7E, 0x00])))
    assert file.array("a").dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(file.array("a").astype(np.float32), [[1, -1], [448, 0]])


def test_views_share_the_map_and_are_read_only(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, file_bytes(b'{"a":%b}     ' % json.dumps(entry()).encode(), b"abcd"))
    first, second = file.array("a"), file.array("a")
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.flags.writeable = True


def test_unaligned_tensor_is_a_read_only_copy(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], dtype=np.float32)
    header = {"odd": entry(shape=[1], offsets=[0, 1]), "a": entry("F32", [2], [1, 9])}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file = open_bytes(tmp_path, file_bytes(raw, b"x" + values.tobytes()))
    array = file.array("a")
    assert array.flags.aligned and not array.flags.writeable
    np.testing.assert_array_equal(array, values)


def test_header_order_and_empty_tensors_do_not_matter(tmp_path: Path) -> None:
    header = {
        "last": entry(shape=[2], offsets=[2, 4]),
        "nothing": entry("F32", [0, 7], [2, 2]),
        "first": entry(shape=[2], offsets=[0, 2]),
        "scalar": entry(shape=[], offsets=[4, 5]),
    }
    file = open_bytes(tmp_path, file_bytes(header, b"abcde"))
    assert {name: file.array(name).tobytes() for name in header} == {
        "first": b"ab", "nothing": b"", "last": b"cd", "scalar": b"e",
    }  # fmt: skip
    assert file.array("nothing").shape == (0, 7) and file.array("scalar").shape == ()


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'b'"):
        open_bytes(tmp_path, file_bytes({"a": entry()}, b"abcd")).array("b")


def test_header_of_50_000_tensors(tmp_path: Path) -> None:
    n = 50_000
    header = {
        f"model.layers.1.mlp.experts.{i}.up_proj.weight": entry(shape=[2], offsets=[2 * i, 2 * i + 2]) for i in range(n)
    }
    file = open_bytes(tmp_path, file_bytes(header, np.arange(n, dtype=np.uint16).tobytes()))
    assert len(file.tensors) == n
    assert file.array(f"model.layers.1.mlp.experts.{n - 1}.up_proj.weight").view(np.uint16)[0] == n - 1


VALID = file_bytes({"a": entry(shape=[2], offsets=[0, 2]), "b": entry("BF16", [1, 1], [2, 4])}, b"abcd")
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["F32", "U8", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opens_or_is_refused(directory: Path, content: bytes) -> None:
    try:
        file = open_bytes(directory, content)
    except CheckpointError as error:
        assert str(error)
        return
    for name, info in file.tensors.items():
        assert file.array(name).nbytes == info.nbytes


@FUZZ
@given(st.binary(max_size=64))
def test_fuzz_any_bytes(tmp_path: Path, content: bytes) -> None:
    opens_or_is_refused(tmp_path, content)


@FUZZ
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=0, max_size=3))
def test_fuzz_valid_file_with_bytes_replaced(tmp_path: Path, place: int, replacement: bytes) -> None:
    opens_or_is_refused(tmp_path, VALID[:place] + replacement + VALID[place + 1 :])


@FUZZ
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.binary(max_size=8))
def test_fuzz_headers_of_valid_json(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    opens_or_is_refused(tmp_path, file_bytes(header, data))


def test_a_limit_of_addresses_is_told_apart_from_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(reader.mmap, "mmap", refuse)
    with pytest.raises(ResourceError, match=r"no address space to map .*ulimit -v"):
        open_bytes(tmp_path, file_bytes({}))
