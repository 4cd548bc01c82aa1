"""linear with Numba; contract in `linear.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_rows import run_rows
from deepzig._kernels._numba_weights import dot_rows
from deepzig._kernels.weight import DECODING, Weight


@jit()
def _rows(first: int, stop: int, matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    rows = np.arange(x.shape[0])
    dot_rows(matrix, first, stop, x, rows, out, rows, first)


def linear(x: np.ndarray, weight: Weight, out: np.ndarray, *, arithmetic: int = DECODING, n_threads: int) -> None:
    n_rows, n_columns = weight.shape
    need(x, "x", np.float32, None, n_columns)
    need_output(out, "out", len(x), n_rows)
    result = packed(out)
    threads = threads_for(n_threads, x.shape[0] * n_rows * n_columns)
    run_rows(_rows, n_rows, threads, weight.descriptor, packed(x), result)
    unpack(result, out)
