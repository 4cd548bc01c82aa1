"""Products with weights and with cached rows, for the `*_numba` kernels: the counterpart of weights.h and tiles.h.

Weights are read through their descriptors (`weight.Weight`), so that each function is compiled once for all formats and
for writable and read-only memory alike. Called inside the njit functions of the kernels; knows nothing of threads.

Numba caches a caller with this code inside it, and looks only at the caller's file to see whether the cache is stale:
after a change here, run `make clean`.
"""

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import FASTMATH
from deepzig._kernels.weight import FORMAT_CODE, SCALE_CODE

F32, F16, BF16, FP8, INT8 = (FORMAT_CODE[name] for name in ("f32", "f16", "bf16", "fp8", "int8"))
NO_SCALE, SCALE_F32, SCALE_F16 = (SCALE_CODE[name] for name in ("none", "f32", "f16"))

PANEL_ROWS = 32  # rows that are decoded at a time
PANEL_COLUMNS = 1024  # columns, likewise: four rows, which dot_panel reads again and again, stay in L1
FROM_0 = np.int64(0)  # as an argument; the literal 0 is a type of its own, for which the callee is compiled once more


@intrinsic
def _pointer(typing_context: Any, address: Any) -> tuple[Any, Any]:
    """An address as a pointer that `numba.carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@jit()
def _from_half(half: np.uint16) -> np.float32:
    """The magnitude, moved to float's place, is value * 2^-112, subnormals too."""
    magnitude = np.uint32(half & np.uint16(0x7FFF)) << np.uint32(13)
    if magnitude >= np.uint32(0x7C00 << 13):  # infinity, NaN
        value = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
    else:
        value = np.uint32(magnitude).view(np.float32) * np.float32(2.0**112)
    return -value if half & np.uint16(0x8000) else value


@jit()
def _scale_at(matrix: np.ndarray, place: int) -> np.float32:
    if matrix[6] == SCALE_F32:
        return numba.carray(_pointer(matrix[1] + 4 * place), 1, np.float32)[0]
    bits = numba.carray(_pointer(matrix[1] + 2 * place), 1, np.uint16)[0]
    return _from_half(bits) if matrix[6] == SCALE_F16 else np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit()
def _decode_row(matrix: np.ndarray, n: int, first: int, row: np.ndarray) -> None:
    """row f32 (columns,) = W[n, first : first + columns]; `first` is even."""
    address, weight_format, n_columns = matrix[0] + n * matrix[4], matrix[5], row.size
    if weight_format == F32:
        floats = numba.carray(_pointer(address + 4 * first), n_columns, np.float32)
        for k in range(n_columns):
            row[k] = floats[k]
    elif weight_format == F16:
        halves = numba.carray(_pointer(address + 2 * first), n_columns, np.uint16)
        for k in range(n_columns):
            row[k] = _from_half(halves[k])
    elif weight_format == BF16:
        halves = numba.carray(_pointer(address + 2 * first), n_columns, np.uint16)
        for k in range(n_columns):
            row[k] = np.uint32(np.uint32(halves[k]) << np.uint32(16)).view(np.float32)
    elif weight_format == FP8:  # the code's bits, moved to float's place, are value * 2^-120
        codes = numba.carray(_pointer(address + first), n_columns, np.uint8)
        for k in range(n_columns):
            code = np.uint32(codes[k])
            magnitude = np.uint32(code & np.uint32(0x7F))
            value = np.uint32(magnitude << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
            value = np.float32(np.nan) if magnitude == 0x7F else value
            row[k] = -value if code & np.uint32(0x80) else value
    elif weight_format == INT8:
        codes = numba.carray(_pointer(address + first), n_columns, np.uint8)
        flip = np.uint8(matrix[9])
        for k in range(n_columns):
            row[k] = np.float32(np.int8(codes[k] ^ flip))
    else:
        codes = numba.carray(_pointer(address + first // 2), (n_columns + 1) // 2, np.uint8)
        for j in range(n_columns // 2):
            row[2 * j] = np.float32(np.int32(codes[j] & 15) - 8)
            row[2 * j + 1] = np.float32(np.int32(codes[j] >> 4) - 8)
        if n_columns % 2:
            row[n_columns - 1] = np.float32(np.int32(codes[n_columns // 2] & 15) - 8)


@jit(error_model="numpy")
def _scale_row(matrix: np.ndarray, n: int, first: int, row: np.ndarray) -> None:
    """row *= the scales of W[n, first : first + columns]."""
    group_size = matrix[7]
    group = first // group_size
    place = n // matrix[8] * ((matrix[3] + group_size - 1) // group_size) + group
    start, stop = 0, (group + 1) * group_size - first
    while start < row.size:
        factor = _scale_at(matrix, place)
        for k in range(np.uintp(start), np.uintp(min(stop, row.size))):  # unsigned: negative indices cannot occur
            row[k] *= factor
        start, stop, place = stop, stop + group_size, place + 1


@jit()
def floats_of(
    matrix: np.ndarray, first: int, stop: int, first_column: int, stop_column: int, panel: np.ndarray
) -> np.ndarray:
    """W[first:stop, first_column:stop_column] as f32, last axis contiguous: where it lies if W is f32, else decoded to
    panel.

    matrix i64 (10,), a descriptor; panel f32 (>= stop - first, >= stop_column - first_column). first_column is even.
    """
    if matrix[5] == F32 and matrix[4] % 4 == 0:
        address, stride = matrix[0] + first * matrix[4] + 4 * first_column, matrix[4] // 4
        return numba.carray(_pointer(address), (stop - first, stride), np.float32)
    for n in range(first, stop):
        row = panel[n - first, : stop_column - first_column]
        _decode_row(matrix, n, first_column, row)
        if matrix[6] != NO_SCALE:
            _scale_row(matrix, n, first_column, row)
    return panel


@jit(fastmath=FASTMATH)
def dot_panel(
    panel: np.ndarray,
    n_rows: int,
    x: np.ndarray,
    x_rows: np.ndarray,
    start: int,
    stop: int,
    out: np.ndarray,
    out_rows: np.ndarray,
    out_column: int,
) -> None:
    """out[out_rows[j], out_column + i] = sum_k panel[i, k - start] * x[x_rows[j], k] for k in [start, stop).

    Sums are added to `out` if start > 0. Four rows of the panel at a time, always by the same loop, so that a sum does
    not depend on the number of rows; at the end of the panel some of the four are the same row.
    """
    zero = np.float32(0)
    columns, column = np.uintp(stop - start), np.uintp(start)
    for i in range(0, n_rows, 4):
        i1, i2, i3 = min(i + 1, n_rows - 1), min(i + 2, n_rows - 1), min(i + 3, n_rows - 1)
        for j in range(x_rows.size):
            t, u = x_rows[j], out_rows[j]
            sum0, sum1, sum2, sum3 = zero, zero, zero, zero
            for k in range(columns):
                value = x[t, column + k]
                sum0 += panel[i, k] * value
                sum1 += panel[i1, k] * value
                sum2 += panel[i2, k] * value
                sum3 += panel[i3, k] * value
            if start > 0:
                sum0 += out[u, out_column + i]
                sum1 += out[u, out_column + i1]
                sum2 += out[u, out_column + i2]
                sum3 += out[u, out_column + i3]
            out[u, out_column + i] = sum0
            out[u, out_column + i1] = sum1
            out[u, out_column + i2] = sum2
            out[u, out_column + i3] = sum3


@jit()
def dot_rows(
    matrix: np.ndarray,
    first: int,
    stop: int,
    x: np.ndarray,
    x_rows: np.ndarray,
    out: np.ndarray,
    out_rows: np.ndarray,
    out_column: int,
) -> None:
    """out[out_rows[j], out_column + n - first] = W[n] . x[x_rows[j]] for n in [first, stop).

    matrix i64 (10,), a descriptor; x f32 (any, K), out f32 (any, any), C-contiguous; x_rows, out_rows i64 (columns,).
    """
    size = matrix[3]
    panel_rows = PANEL_ROWS if x_rows.size > 4 else 4
    panel = np.empty((panel_rows, min(size, PANEL_COLUMNS)), np.float32)
    for n in range(first, stop, panel_rows):
        panel_stop = min(n + panel_rows, stop)
        for column in range(0, size, PANEL_COLUMNS):
            stop_column = min(column + PANEL_COLUMNS, size)
            weights = floats_of(matrix, n, panel_stop, column, stop_column, panel)
            dot_panel(weights, panel_stop - n, x, x_rows, column, stop_column, out, out_rows, out_column + n - first)


@jit(fastmath=FASTMATH)
def mix_panel(panel: np.ndarray, n_rows: int, factors: np.ndarray, out: np.ndarray) -> None:
    """out[k] += sum_i factors[i] * panel[i, k] for i < n_rows and k < out.size."""
    whole = n_rows // 4 * 4
    for i in range(0, whole, 4):
        f0, f1, f2, f3 = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for k in range(out.size):
            out[k] += f0 * panel[i, k] + f1 * panel[i + 1, k] + f2 * panel[i + 2, k] + f3 * panel[i + 3, k]
    for i in range(whole, n_rows):
        for k in range(out.size):
            out[k] += factors[i] * panel[i, k]


@jit(fastmath=FASTMATH)
def attend(scores: np.ndarray, scale: np.float32, values: np.ndarray, softmax: np.ndarray, out: np.ndarray) -> None:
    """Online softmax: `out` and `softmax` (greatest score, sum of exp) of one query go on with more visible keys.

    scores f32 (S,), unscaled, overwritten; values f32 (>= S, >= V); softmax f32 (2,); out f32 (V,), not yet divided.
    """
    highest = softmax[0]
    for s in range(scores.size):
        scores[s] *= scale
        highest = max(highest, scores[s])
    keep = np.exp(softmax[0] - highest)
    total = softmax[1] * keep
    for s in range(scores.size):
        scores[s] = np.exp(scores[s] - highest)
        total += scores[s]
    for v in range(out.size):
        out[v] *= keep
    mix_panel(values, scores.size, scores, out)
    softmax[0], softmax[1] = highest, total
