"""Quantising matrices that need not fit in memory: slabs of rows are decoded and rounded by several threads, in order.

Called by `convert`, which writes what comes out, and by `verify` and `deepzig info` to find NaN; calls the kernel
`dequantize`, `rounding` and `rounding_numba`. Knows weights and their names in messages, no files. What it holds at a
time is a few slabs, whatever the size of the matrices.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepzig import _kernels
from deepzig._kernels.weight import PLAIN
from deepzig.checkpoint.plan import Item
from deepzig.checkpoint.rounding import cast
from deepzig.checkpoint.rounding_numba import first_non_finite, round_fp8, round_int4, round_int8
from deepzig.checkpoint.schemes import CHANNEL, FP8_BLOCK, Scheme, packed_words
from deepzig.errors import CheckpointError, shown

SLAB_VALUES = 1 << 20  # 4 MB as f32, so that decoded values are still in the cache when they are rounded
WAITING = 4  # rounded slabs for each thread that may wait to be written


@dataclass(frozen=True)
class Slab:
    """Consecutive rows of a matrix as they are stored: codes, and scales if there are any."""

    codes: np.ndarray  # (rows, row width)
    scale: np.ndarray | None  # (rows or blocks of rows, groups)


class Quantizer:
    """Turns matrices into slabs of their new format.

    importance       module path -> f32 (K,), what the squared error of a column counts for in int4
    allow_nonfinite  NaN becomes 0 in integers, and infinity the greatest finite magnitude of its group
    """

    def __init__(self, importance: Mapping[str, np.ndarray], allow_nonfinite: bool, n_threads: int) -> None:
        self._importance, self._allow_nonfinite, self._n_threads = importance, allow_nonfinite, n_threads

    def slabs(self, items: Iterable[Item]) -> Generator[Slab]:
        """The slabs of all matrices, one after the other, in order. Vectors and copies must not be among them.

        Raises CheckpointError that names tensor and position of a value that cannot be rounded.
        """
        pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="deepzig-quantize")
        pending: deque[Future[Slab]] = deque()
        try:
            for item in items:
                for rows in row_slabs(item):
                    pending.append(pool.submit(self.slab, item, rows))
                    if len(pending) > WAITING * self._n_threads:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def slab(self, item: Item, rows: slice) -> Slab:
        """Rows of one matrix."""
        assert item.weight is not None
        values = np.empty((rows.stop - rows.start, item.weight.shape[1]), np.float32)
        _kernels.dequantize(item.weight, np.arange(rows.start, rows.stop, dtype=np.int32), values, n_threads=1)
        found = first_non_finite(values)
        if found >= 0 and not self._allow_nonfinite:
            row, column = divmod(int(found), item.weight.shape[1])
            raise non_finite(item.copied[0], (rows.start + row, column))
        if item.scheme.format in PLAIN:
            return Slab(self._cast(item, values), None)
        if found >= 0:
            _make_finite(values, _group_size(item.scheme, values.shape[1]))
        return self._rounded(item, values)

    def _cast(self, item: Item, values: np.ndarray) -> np.ndarray:
        try:
            return cast(values, item.scheme.format)
        except CheckpointError as error:  # float16 overflows
            raise CheckpointError(f"{shown(item.name)}: {error}") from error

    def _rounded(self, item: Item, values: np.ndarray) -> Slab:
        n_rows, n_columns = values.shape
        size = _group_size(item.scheme, n_columns)
        if item.scheme.format == "fp8":
            scale = np.empty((-(-n_rows // FP8_BLOCK), -(-n_columns // FP8_BLOCK)), np.float32)
            codes = np.empty(values.shape, np.uint8)
            round_fp8(values, FP8_BLOCK, codes, scale)
            return Slab(codes, scale)
        scale = np.empty((n_rows, n_columns // size), np.uint16)
        codes = np.zeros((n_rows, 4 * packed_words(n_columns, item.scheme.bits)), np.uint8)
        if item.scheme.format == "int8":
            round_int8(values, size, codes, scale)
        else:
            importance = self._importance.get(item.name)
            counts = np.ones(n_columns, np.float32) if importance is None else importance
            round_int4(values, size, counts, codes, scale)
        return Slab(codes, scale)


def row_slabs(item: Item) -> list[slice]:
    """Rows of a matrix that are worked on together: about SLAB_VALUES, and whole blocks of fp8."""
    assert item.weight is not None
    n_rows, n_columns = item.weight.shape
    height = max(1, SLAB_VALUES // n_columns)
    if item.scheme.format == "fp8":
        height = -(-height // FP8_BLOCK) * FP8_BLOCK
    return [slice(start, min(start + height, n_rows)) for start in range(0, n_rows, height)]


def non_finite(tensor: str, index: tuple[int, ...]) -> CheckpointError:
    """The error for NaN or infinity in a tensor."""
    return CheckpointError(
        f"{shown(tensor)} holds NaN or infinity at {list(index)}; fetch the checkpoint again, or give --allow-nonfinite"
    )


def find_non_finite(
    tensor: np.ndarray, progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity of a tensor of any dtype and shape, None if there is none.

    progress is told of the bytes looked at.
    """
    if tensor.dtype.kind in "biu":
        progress(tensor.nbytes)
        return None
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, SLAB_VALUES):
        part = flat[start : start + SLAB_VALUES]
        found = first_non_finite(_as_f32(part)[None])
        if found >= 0:
            return tuple(int(i) for i in np.unravel_index(start + int(found), tensor.shape))
        progress(part.nbytes)
    return None


def _as_f32(part: np.ndarray) -> np.ndarray:
    """f32 (n,), finite where `part` (n,), floats of any kind, is finite; the values may differ."""
    if part.dtype == ml_dtypes.float8_e4m3fn:  # by its bits, since the casts of ml_dtypes are slow
        return np.where((part.view(np.uint8) & 127) == 127, np.float32(np.nan), np.float32(0))
    if part.dtype == ml_dtypes.bfloat16:
        return (part.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if part.dtype == np.float64:
        return np.where(np.isfinite(part), np.float32(0), np.float32(np.nan))
    return np.ascontiguousarray(part, dtype=np.float32)


def _group_size(scheme: Scheme, n_columns: int) -> int:
    return FP8_BLOCK if scheme.format == "fp8" else n_columns if scheme.group_size == CHANNEL else scheme.group_size


def _make_finite(values: np.ndarray, size: int) -> None:
    """In f32 (n, K), in place: NaN becomes 0, infinity the greatest finite magnitude of its `size` columns."""
    for start in range(0, values.shape[1], size):
        group = values[:, start : start + size]
        finite = np.isfinite(group)
        greatest = np.where(finite, np.abs(group), 0).max(axis=1, keepdims=True)
        signed = np.where(np.isnan(group), 0, np.sign(group)) * greatest
        group[...] = np.where(finite, group, signed)
