"""absorb_value with Numba; contract in `absorb_value.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import FROM_0, dot_rows
from deepzig._kernels.weight import Weight


@jit()
def _heads(first: int, stop: int, matrix: np.ndarray, n_heads: int, o_latent: np.ndarray, out: np.ndarray) -> None:
    """o_latent f32 (T H, R), out f32 (T H, V)."""
    head_rows, value_dim = matrix[2] // n_heads, out.shape[1]
    for h in range(first, stop):
        rows = np.arange(h, o_latent.shape[0], n_heads)
        head_stop = (h + 1) * head_rows
        dot_rows(matrix, head_stop - value_dim, head_stop, o_latent, rows, out, rows, FROM_0)


def absorb_value(o_latent: np.ndarray, kv_b_proj: Weight, out: np.ndarray, *, n_threads: int) -> None:
    n_rows, rank = kv_b_proj.shape
    need(o_latent, "o_latent", np.float32, None, None, rank)
    need_output(out, "out", *o_latent.shape[:2], None)
    n_heads, value_dim = out.shape[1:]
    if n_heads == 0 or n_rows % n_heads or n_rows // n_heads < value_dim:
        raise ValueError(f"kv_b_proj of {n_rows} rows does not fit {n_heads} heads of {value_dim}")
    result = packed(out)
    threads = threads_for(n_threads, o_latent.size * value_dim)
    flat = packed(o_latent).reshape(-1, rank), result.reshape(-1, value_dim)
    run_rows(_heads, n_heads, threads, kv_b_proj.descriptor, n_heads, *flat)
    unpack(result, out)
