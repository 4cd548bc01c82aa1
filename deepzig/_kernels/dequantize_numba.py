"""dequantize with Numba; contract in `dequantize.py`. Formats without scales are NumPy casts."""

import functools

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels.dequantize import scales_of, values_of
from deepzig._kernels.weight import Weight


@functools.cache
def _table(weight_format: str, offset: int) -> np.ndarray:
    """f32 (256,): the value of every byte of an fp8 or int8 weight, or (256, 2): of every byte of an int4 weight."""
    codes = np.arange(256, dtype=np.uint8).reshape(256, 1)
    n_columns = 2 if weight_format == "int4" else 1
    values = values_of(Weight(weight_format, (256, n_columns), codes, offset=offset), codes)
    return np.ascontiguousarray(values if n_columns == 2 else values[:, 0])


@jit()
def _scaled_rows(
    first: int,
    stop: int,
    rows: np.ndarray,
    codes: np.ndarray,
    table: np.ndarray,
    scale: np.ndarray,
    group_size: int,
    block_rows: int,
    out: np.ndarray,
) -> None:
    n_columns = out.shape[1]
    for i in range(first, stop):
        n = rows[i]
        for group in range(scale.shape[1]):
            factor = scale[n // block_rows, group]
            for k in range(group * group_size, min((group + 1) * group_size, n_columns)):
                # Numba decides this while it compiles: shifts by 0 or 1 would take twice as long for bytes.
                value = table[codes[n, k]] if table.ndim == 1 else table[codes[n, k // 2], k % 2]
                out[i, k] = value * factor


def _cast_rows(first: int, stop: int, rows: np.ndarray, weight: Weight, out: np.ndarray) -> None:
    out[first:stop] = values_of(weight, weight.codes[rows[first:stop]])


def _need_rows(rows: np.ndarray, n_rows: int) -> None:
    need(rows, "rows", np.int32, None)
    outside = rows[(rows < 0) | (rows >= n_rows)]
    if len(outside):
        raise ValueError(f"rows names row {outside[0]} of {n_rows}")


def dequantize(weight: Weight, rows: np.ndarray, out: np.ndarray, *, n_threads: int) -> None:
    n_rows, n_columns = weight.shape
    _need_rows(rows, n_rows)
    need_output(out, "out", len(rows), n_columns)
    scale = scales_of(weight)
    if scale is None:
        run_rows(_cast_rows, len(rows), n_threads, rows, weight, out)
        return
    table = _table(weight.format, weight.offset)
    geometry = (weight.group_size, weight.block_rows)
    run_rows(_scaled_rows, len(rows), n_threads, rows, weight.codes, table, scale, *geometry, out)
