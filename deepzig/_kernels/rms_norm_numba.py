"""RMSNorm with Numba; contract in `rms_norm.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import FASTMATH_IN_ORDER, LANES, run_rows


@jit(fastmath=FASTMATH_IN_ORDER)
def _rows(first: int, stop: int, x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    size = x.shape[1]
    whole = size - size % LANES
    lanes = np.empty(LANES, np.float32)
    for t in range(first, stop):
        lanes[:] = np.float32(0)
        for d in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += x[t, d + lane] * x[t, d + lane]
        total = np.float32(0)
        for lane in range(LANES):
            total += lanes[lane]
        for d in range(whole, size):
            total += x[t, d] * x[t, d]
        factor = np.float32(1) / np.sqrt(total / np.float32(size) + eps)
        for d in range(size):
            out[t, d] = x[t, d] * factor * weight[d]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray, *, n_threads: int) -> None:
    need(x, "x", np.float32, None, None)
    need(weight, "weight", np.float32, x.shape[1])
    need_output(out, "out", *x.shape)
    run_rows(_rows, x.shape[0], n_threads, x, weight, np.float32(eps), out)
