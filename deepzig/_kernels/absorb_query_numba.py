"""absorb_query with Numba; contract in `absorb_query.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import FROM_0, PANEL_ROWS, floats_of, mix_panel
from deepzig._kernels.weight import Weight


@jit()
def _heads(first: int, stop: int, matrix: np.ndarray, q_nope: np.ndarray, out: np.ndarray) -> None:
    n_heads, nope = q_nope.shape[1:]
    rank, head_rows = matrix[3], matrix[2] // n_heads
    panel = np.empty((PANEL_ROWS, rank), np.float32)
    for h in range(first, stop):
        out[:, h] = np.float32(0)
        for n in range(0, nope, PANEL_ROWS):
            count = min(PANEL_ROWS, nope - n)
            weights = floats_of(matrix, h * head_rows + n, h * head_rows + n + count, FROM_0, rank, panel)
            for t in range(q_nope.shape[0]):
                mix_panel(weights, count, q_nope[t, h, n : n + count], out[t, h])


def absorb_query(q_nope: np.ndarray, kv_b_proj: Weight, out: np.ndarray, *, n_threads: int) -> None:
    n_rows, rank = kv_b_proj.shape
    need(q_nope, "q_nope", np.float32, None, None, None)
    need_output(out, "out", *q_nope.shape[:2], rank)
    n_heads, nope = q_nope.shape[1:]
    if n_heads == 0 or n_rows % n_heads or n_rows // n_heads < nope:
        raise ValueError(f"kv_b_proj of {n_rows} rows does not fit {n_heads} heads of {nope}")
    result = packed(out)
    threads = threads_for(n_threads, q_nope.size * rank)
    run_rows(_heads, n_heads, threads, kv_b_proj.descriptor, packed(q_nope), result)
    unpack(result, out)
