"""mla_prefill with Numba; contract in `mla_prefill.py`.

A thread takes some queries of some heads. Keys and values of a head are packed once, then serve QUERY_BLOCK queries
at a time.
"""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import FROM_0, attend, dot_panel
from deepzig._kernels.weight import DECODING

QUERY_BLOCK = 32


@jit()
def _pack(h: int, n_keys: int, kv: np.ndarray, k_pe: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
    """keys f32 (S, N + P), values f32 (S, V) of head h."""
    nope = keys.shape[1] - k_pe.shape[1]
    for s in range(n_keys):
        for n in range(nope):
            keys[s, n] = kv[s, h, n]
        for p in range(k_pe.shape[1]):
            keys[s, nope + p] = k_pe[s, p]
        for v in range(values.shape[1]):
            values[s, v] = kv[s, h, nope + v]


@jit()
def _rows(
    first: int,
    stop: int,
    q: np.ndarray,
    kv: np.ndarray,
    k_pe: np.ndarray,
    ahead: int,
    scale: np.float32,
    running_max: np.ndarray,
    running_sum: np.ndarray,
    out: np.ndarray,
) -> None:
    """first, stop count queries of all heads, head by head. Query t sees the keys before ahead + t.

    q f32 (T H, N + P), kv f32 (S, H, N + V), k_pe f32 (S, P), running_max, running_sum f32 (T H,), out f32 (T H, V)
    """
    n_keys, n_heads = kv.shape[:2]
    n_rows = q.shape[0] // n_heads
    keys = np.empty((n_keys, q.shape[1]), np.float32)
    values = np.empty((n_keys, out.shape[1]), np.float32)
    scores = np.empty((QUERY_BLOCK, n_keys), np.float32)
    softmax = np.empty(2, np.float32)
    places = np.arange(QUERY_BLOCK)
    packed_head = -1
    while first < stop:
        h, t = first // n_rows, first % n_rows
        count = min(QUERY_BLOCK, n_rows - t, stop - first)
        if h != packed_head:
            _pack(h, n_keys, kv, k_pe, keys, values)
            packed_head = h
        rows = np.arange(t * n_heads + h, (t + count) * n_heads, n_heads)
        most = min(ahead + t + count - 1, n_keys)
        dot_panel(keys, most, q, rows, FROM_0, keys.shape[1], scores, places, FROM_0)
        for j in range(count):
            visible, row = min(ahead + t + j, n_keys), rows[j]
            if visible > 0:
                softmax[0], softmax[1] = running_max[row], running_sum[row]
                attend(scores[j, :visible], scale, values, softmax, out[row])
                running_max[row], running_sum[row] = softmax[0], softmax[1]
        first += count


def mla_prefill(
    q: np.ndarray,
    kv: np.ndarray,
    k_pe: np.ndarray,
    first_query: int,
    first_key: int,
    softmax_scale: float,
    running_max: np.ndarray,
    running_sum: np.ndarray,
    out: np.ndarray,
    *,
    arithmetic: int = DECODING,
    n_threads: int,
) -> None:
    need(q, "q", np.float32, None, None, None)
    n_rows, n_heads, width = q.shape
    need(k_pe, "k_pe", np.float32, None, None)
    need_output(out, "out", n_rows, n_heads, None)
    n_keys, rope_dim = k_pe.shape
    value_dim = out.shape[2]
    if rope_dim > width:
        raise ValueError(f"k_pe is wider than a query: {rope_dim}")
    need(kv, "kv", np.float32, n_keys, n_heads, width - rope_dim + value_dim)
    need_output(running_max, "running_max", n_rows, n_heads)
    need_output(running_sum, "running_sum", n_rows, n_heads)
    outputs = running_max, running_sum, out
    results = [packed(array) for array in outputs]
    flat = results[0].reshape(-1), results[1].reshape(-1), results[2].reshape(-1, value_dim)
    threads = threads_for(n_threads, q.size * n_keys)
    inputs = packed(q).reshape(-1, width), packed(kv), packed(k_pe)
    positions = first_query - first_key + 1, np.float32(softmax_scale)
    run_rows(_rows, n_rows * n_heads, threads, *inputs, *positions, *flat)
    for array, result in zip(outputs, results, strict=True):
        unpack(result, array)
