"""rope with Numba; contract in `rope.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import FASTMATH, run_rows


@jit(fastmath=FASTMATH)
def _rows(first: int, stop: int, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, pair: int, apart: int) -> None:
    for t in range(first, stop):
        for h in range(x.shape[1]):
            for i in range(cos.shape[1]):
                a, b = x[t, h, i * pair], x[t, h, i * pair + apart]
                x[t, h, i * pair] = a * cos[t, i] - b * sin[t, i]
                x[t, h, i * pair + apart] = b * cos[t, i] + a * sin[t, i]


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleave: bool, *, n_threads: int) -> None:
    need_output(x, "x", None, None, None)
    n_tokens, n_heads, size = x.shape
    half = size // 2
    need_output(x, "x", n_tokens, n_heads, 2 * half)  # even
    need(cos, "cos", np.float32, n_tokens, half)
    need(sin, "sin", np.float32, n_tokens, half)
    pair, apart = (2, 1) if interleave else (1, half)
    run_rows(_rows, n_tokens, n_threads, x, cos, sin, pair, apart)
