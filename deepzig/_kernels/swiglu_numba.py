"""swiglu with Numba; contract in `swiglu.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import FASTMATH, run_rows


@jit(fastmath=FASTMATH)
def _rows(first: int, stop: int, gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None:
    one = np.float32(1)
    for t in range(first, stop):
        for i in range(gate.shape[1]):
            out[t, i] = gate[t, i] / (one + np.exp(-gate[t, i])) * up[t, i]


def swiglu(gate: np.ndarray, up: np.ndarray, out: np.ndarray, *, n_threads: int) -> None:
    need(gate, "gate", np.float32, None, None)
    need(up, "up", np.float32, *gate.shape)
    need_output(out, "out", *gate.shape)
    run_rows(_rows, gate.shape[0], n_threads, gate, up, out)
