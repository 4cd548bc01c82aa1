"""linear with Numba; contract in `linear.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import dot_rows
from deepzig._kernels.weight import DECODING, Weight


@jit()
def _rows(first: int, stop: int, matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    x_rows = np.arange(x.shape[0])
    dot_rows(matrix, first, stop, x, x_rows, out, x_rows, first)


def linear(x: np.ndarray, weight: Weight, out: np.ndarray, *, arithmetic: int = DECODING, n_threads: int) -> None:
    rows, columns = weight.shape
    need(x, "x", np.float32, None, columns)
    need_output(out, "out", len(x), rows)
    result = packed(out)
    threads = threads_for(n_threads, x.shape[0] * rows * columns)
    run_rows(_rows, rows, threads, weight.descriptor, packed(x), result)
    unpack(result, out)
