"""SafetensorsFile: one weight file, with its header fully checked and its tensors as views of a memory map.

Called by `directory` (a checkpoint is one or more such files) and by the engine's prompt cache; calls `small_files`.
Its table of dtypes serves all of `checkpoint`. Knows no models.

Stricter than the safetensors library: duplicate names, unknown keys and unknown dtypes are errors. No byte of tensor
data is read here, so opening costs the same whatever the size.

Format: u64 length of the header, the header (JSON), then the tensors without holes
(https://github.com/huggingface/safetensors#format).
"""

import errno
import json
import math
import mmap
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from deepzig.errors import CheckpointError, ResourceError, shown, shown_bytes
from deepzig.small_files import open_regular, stand_in_fault

MAX_HEADER_BYTES = 100_000_000  # as the safetensors library
MAX_TENSORS = 300_000  # Kimi-K2 in one file, three tensors a matrix, would have 211,000
MAX_NAME_LENGTH = 1024
MAX_DIMENSIONS = 8
MAX_TENSOR_VALUES = 1 << 56

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class TensorInfo(NamedTuple):
    """What the header says of a tensor, checked."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    start: int  # byte of the file at which the data starts
    nbytes: int


class SafetensorsFile:
    """A safetensors file, mapped read-only.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or its header is not what the format allows.
        ResourceError: the process may not map so much.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            raw_header, self._bytes = _map(self.path)
        except (OSError, ValueError) as error:  # ValueError: it shrank between its opening and its mapping
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise ResourceError(
                    f"no address space to map {self.path}, {shown_bytes(self.path.stat().st_size)}; raise the limit "
                    "(ulimit -v, RLIMIT_AS)"
                ) from error
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            advice = "check its permissions" if isinstance(error, PermissionError) else "fetch it again"
            raise CheckpointError(f"cannot read {self.path} ({reason}); {advice}") from error
        header = parse_json_object(raw_header, f"the header of {self.path}")
        self.metadata = _metadata(header.pop("__metadata__", {}), self.path)
        self.tensors = _tensor_infos(header, 8 + len(raw_header), self._bytes.size, self.path)

    def array(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the file, or a read-only copy where its start is not aligned.

        bf16 and fp8 have the dtypes of `ml_dtypes`. Raises CheckpointError for an unknown name.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} has no tensor {shown(name)}; fetch the checkpoint again")
        view = self._bytes[info.start : info.start + info.nbytes].view(DTYPES[info.dtype]).reshape(info.shape)
        if not view.flags.aligned:
            view = view.copy()
            view.flags.writeable = False
        return view


def parse_json_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top is an object, without duplicate keys and of bounded size.

    Raises CheckpointError that begins with `what`.
    """
    if raw[:1] != b"{":
        raise CheckpointError(f"{what} does not start with '{{'; it is no JSON object, fetch the file again")
    # Counted before parsing, since a bracket costs 50 times its byte in memory. A tensor needs three, the header two.
    if raw.count(b"{") + raw.count(b"[") > 3 * MAX_TENSORS + 2 or raw.count(b",") > 8 * MAX_TENSORS:
        raise CheckpointError(f"{what} lists more than {MAX_TENSORS} tensors; no model has so many, fetch it again")
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise CheckpointError(f"{what} is nested too deeply; fetch the file again") from error
    except ValueError as error:
        raise CheckpointError(f"{what} is no valid JSON ({str(error)[:160]}); fetch the file again") from error
    return dict(parsed)


class _DuplicateKeyError(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _DuplicateKeyError(f"the key {shown(repeated)} occurs twice")
    return found


def _map(path: Path) -> tuple[bytes, np.ndarray]:
    """The header's bytes and the whole file as u8 (size,), read-only. Lengths are checked before anything is read."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size < 8:
            raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file; fetch it again")
        file.seek(0)
        head = file.read(100)
        if fault := stand_in_fault(head):
            raise CheckpointError(f"{path} {fault}")
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} claims a header of {length} bytes, more than {MAX_HEADER_BYTES}; it is no safetensors file"
            )
        if 8 + length > size:
            raise CheckpointError(f"{path} is truncated: {size} bytes, its header alone has {length}; fetch it again")
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return mapped[8 : 8 + length], np.frombuffer(mapped, dtype=np.uint8)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(type(text) is str for text in value.values()):
        raise CheckpointError(f"__metadata__ of {path} is no object of strings; fetch the file again")
    return value


def _tensor_infos(header: dict[str, Any], data_start: int, file_size: int, path: Path) -> dict[str, TensorInfo]:
    """Check each entry by itself, then that together they cover the data section once and whole."""
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(header)} tensors, more than {MAX_TENSORS}; fetch the file again")
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if len(name) > MAX_NAME_LENGTH:
            raise CheckpointError(f"tensor {shown(name)} of {path} has a name of {len(name)} characters")
        try:
            tensors[name] = _tensor_info(entry, data_start, file_size)
        except _BadEntryError as error:
            raise CheckpointError(f"tensor {shown(name)} of {path} {error}; fetch the file again") from error
    _check_coverage(tensors, data_start, file_size, path)
    return tensors


class _BadEntryError(Exception):
    """The rest of a sentence that starts with the tensor's name."""


def _tensor_info(entry: Any, data_start: int, file_size: int) -> TensorInfo:
    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        raise _BadEntryError("is not described by just dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise _BadEntryError(f"has dtype {shown(dtype)}, which deepzig does not know")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS or not _are_sizes(shape):
        raise _BadEntryError(f"has shape {shown(shape)}, not a list of at most {MAX_DIMENSIONS} sizes")
    if type(offsets) is not list or len(offsets) != 2 or not _are_sizes(offsets):
        raise _BadEntryError(f"has data_offsets {shown(offsets)}, not two positions")
    begin, end = offsets
    if begin > end:
        raise _BadEntryError(f"has data_offsets {shown(offsets)}, which end before they begin")
    if data_start + end > file_size:
        stored = file_size - data_start
        raise _BadEntryError(f"has data_offsets {shown(offsets)}, but only {stored} bytes of data are stored")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if nbytes != end - begin:
        raise _BadEntryError(f"has shape {shown(shape)} of {dtype}, but {end - begin} bytes are stored")
    if not nbytes and math.prod(size or 1 for size in shape) > MAX_TENSOR_VALUES:  # more than NumPy can index
        raise _BadEntryError(f"has shape {shown(shape)}, too large to address")
    return TensorInfo(dtype, tuple(shape), data_start + begin, nbytes)


def _are_sizes(values: list[Any]) -> bool:
    """Whether all are integers (True is none) and not negative."""
    return all([type(value) is int and value >= 0 for value in values])  # a list: half the time of a generator


def _check_coverage(tensors: dict[str, TensorInfo], data_start: int, file_size: int, path: Path) -> None:
    covered = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != covered:
            fault = "overlaps another tensor" if info.start < covered else "follows a hole"
            raise CheckpointError(
                f"tensor {shown(name)} of {path} {fault} (starts at byte {info.start}, not {covered}); "
                "fetch the file again"
            )
        covered += info.nbytes
    if covered != file_size:
        raise CheckpointError(
            f"{path} has {file_size} bytes, but its tensors end at byte {covered}; fetch the file again"
        )
