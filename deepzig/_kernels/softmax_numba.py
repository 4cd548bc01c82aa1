"""softmax with Numba; contract in `softmax.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import FASTMATH_IN_ORDER, LANES, run_rows


@jit(fastmath=FASTMATH_IN_ORDER)
def _rows(first: int, stop: int, x: np.ndarray, out: np.ndarray) -> None:
    size = x.shape[1]
    whole = size - size % LANES
    lanes = np.empty(LANES, np.float32)
    for t in range(first, stop):
        highest = np.float32(-np.inf)
        for s in range(size):
            highest = max(highest, x[t, s])
        if highest == -np.inf:
            highest = np.float32(0)
        for s in range(size):
            out[t, s] = np.exp(x[t, s] - highest)
        lanes[:] = np.float32(0)
        for s in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += out[t, s + lane]
        total = np.float32(0)
        for lane in range(LANES):
            total += lanes[lane]
        for s in range(whole, size):
            total += out[t, s]
        factor = np.float32(1) / (np.float32(1) if total == 0 else total)
        for s in range(size):
            out[t, s] *= factor


def softmax(x: np.ndarray, out: np.ndarray, *, n_threads: int) -> None:
    need(x, "x", np.float32, None, None)
    need_output(out, "out", *x.shape)
    run_rows(_rows, x.shape[0], n_threads, x, out)
