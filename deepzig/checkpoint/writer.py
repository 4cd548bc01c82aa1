"""SafetensorsWriter: writes one safetensors file tensor by tensor, in row slabs if need be, and all or nothing.

Called by the converter, the engine's prompt cache and the bench; calls `reader` for the dtypes and `safe_files`. Knows
no models. The file gets its name when it is whole and on the disk; until then it is `<name>.tmp-<pid>` beside it.

Alignment. The format allows no holes, so only the header can be padded: with spaces, until the data starts at a
multiple of 64. Tensors whose size is a multiple of 64 come first, and each starts at a multiple of 64. The others
(a few scales, weight_shape) follow by the power of two that divides their size, greatest first; the first of them
starts at a multiple of 64 and all of them at a multiple of their item size.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from deepzig.checkpoint.reader import DTYPES, MAX_HEADER_BYTES, MAX_TENSORS, TensorInfo
from deepzig.checkpoint.safe_files import NO_ROOM, sync_directory
from deepzig.errors import CheckpointError, ResourceError, shown, shown_bytes

ALIGNMENT = 64  # bytes: a cache line and the widest vector register

Entry = tuple[str, str, Sequence[int]]  # name, dtype as safetensors spells it, shape


class SafetensorsWriter:
    """A context manager; on leaving it the file is in place, or, after an exception, nothing is.

        with SafetensorsWriter(path, [("a.weight", "BF16", (4, 8))], {"format": "pt"}) as writer:
            writer.write("a.weight", array)

    `order` holds the names in the order of the file, `tensors` their places; writing in that order is sequential, but
    any order works. `path` is replaced if it exists.

    Raises:
        ResourceError: the disk is full; the message has the bytes needed and free.
        CheckpointError: the file cannot be created or written for another reason.
        ValueError: an entry is no tensor, occurs twice, or was not written.
    """

    def __init__(self, path: str | Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        header, self.tensors = _lay_out(list(entries), dict(metadata or {}))
        self.order = list(self.tensors)
        self.nbytes = len(header) + sum(info.nbytes for info in self.tensors.values())
        self._unwritten = set(self.order)
        try:
            self._file: BinaryIO = self._temporary.open("wb")
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._put(header)
        except ResourceError:
            self.discard()
            raise

    def write(self, name: str, data: np.ndarray | Iterable[np.ndarray]) -> None:
        """Write the tensor `name`: one array of its dtype and shape, or chunks of its dtype that follow each other."""
        info = self.tensors[name]
        if name not in self._unwritten:
            raise ValueError(f"tensor {name!r} is written twice")
        if isinstance(data, np.ndarray) and data.shape != info.shape:
            raise ValueError(f"tensor {name!r} is to have shape {info.shape}, not {data.shape}")
        self._go_to(info.start)
        written = 0
        for chunk in [data] if isinstance(data, np.ndarray) else data:
            if chunk.dtype != DTYPES[info.dtype]:
                raise ValueError(f"tensor {name!r} is to have dtype {info.dtype}, not {chunk.dtype}")
            written += chunk.nbytes
            if written > info.nbytes:
                break
            self._put(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        if written != info.nbytes:
            raise ValueError(f"the chunks of tensor {name!r} have {written} bytes or more, not {info.nbytes}")
        self._unwritten.discard(name)

    def close(self) -> None:
        """Bring the file to the disk and give it its name."""
        if self._unwritten:
            raise ValueError(f"{len(self._unwritten)} tensors were not written, such as {min(self._unwritten)!r}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise self._failure(error) from error

    def discard(self) -> None:
        """Remove what was written."""
        try:
            self._file.close()  # flushes, which a full disk refuses
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def _go_to(self, start: int) -> None:
        try:
            if self._file.tell() != start:
                self._file.seek(start)  # writes what is buffered
        except OSError as error:
            raise self._failure(error) from error

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> Exception:
        if error.errno in NO_ROOM:
            free = shown_bytes(shutil.disk_usage(self.path.parent).free)
            return ResourceError(
                f"cannot write {self.path}: it needs {shown_bytes(self.nbytes)}, {free} are free; make room"
            )
        return CheckpointError(f"cannot write {self.path} ({error.strerror}); check folder and permissions")


def _lay_out(entries: list[Entry], metadata: dict[str, str]) -> tuple[bytes, dict[str, TensorInfo]]:
    """The header, its length included, and the place of each tensor, in order."""
    names = [name for name, _, _ in entries]
    if len(set(names)) != len(names) or "__metadata__" in names:
        raise ValueError("names of tensors must be unique, and none may be __metadata__")
    sized = [(name, dtype, tuple(shape), _nbytes(name, dtype, shape)) for name, dtype, shape in entries]
    sized.sort(key=lambda entry: -_alignment(entry[3]))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape, nbytes in sized:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + nbytes)}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES or len(sized) > MAX_TENSORS:
        raise ValueError(f"a header of {len(sized)} tensors, {len(text)} bytes, is more than readers accept")
    start, tensors = 8 + len(text), {}
    for name, dtype, shape, nbytes in sized:
        tensors[name] = TensorInfo(dtype, shape, start, nbytes)
        start += nbytes
    return len(text).to_bytes(8, "little") + text, tensors


def _nbytes(name: str, dtype: str, shape: Sequence[int]) -> int:
    if dtype not in DTYPES or any(size < 0 for size in shape):
        raise ValueError(f"no tensor has dtype and shape of {shown(name)}: {dtype!r}, {shape!r}")
    return math.prod(shape) * DTYPES[dtype].itemsize


def _alignment(nbytes: int) -> int:
    """The greatest power of two up to 64 that divides `nbytes`."""
    return math.gcd(nbytes, ALIGNMENT)
