"""experts with NumPy's BLAS; contract in `experts.py`. The way of prompts without AVX2.

Threads take whole experts, those with most tokens first; each decodes an expert's matrices to panels of floats, as
`linear_blas` does, and multiplies them with its tokens as columns, which BLAS does half as fast again as with few rows.
A token's result depends on how many meet its experts, as BLAS picks its order of summation by the shape; not on
n_threads.
"""

from collections import deque

import numpy as np

from deepzig import _kernels
from deepzig._kernels._array_checks import need, need_output, threads_for
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._park import park
from deepzig._kernels.linear_blas import multiply_columns, one_blas_thread
from deepzig._kernels.weight import DECODING, ExpertWeights


def experts(
    x: np.ndarray,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
    weights: ExpertWeights,
    scratch: np.ndarray,
    out: np.ndarray,
    *,
    arithmetic: int = DECODING,
    n_threads: int,
) -> None:
    need(topk_idx, "topk_idx", np.int32, None, None)
    n_tokens, n_slots = topk_idx.shape
    hidden_size, intermediate_size = weights.hidden_size, weights.intermediate_size
    need(x, "x", np.float32, n_tokens, hidden_size)
    need(topk_weight, "topk_weight", np.float32, n_tokens, n_slots)
    need_output(scratch, "scratch", None)
    need_output(out, "out", n_tokens, hidden_size)
    if scratch.size < n_tokens * n_slots * hidden_size:
        raise ValueError(f"scratch has {scratch.size} floats, fewer than experts.scratch_size")
    if topk_idx.size and not 0 <= topk_idx.min() <= topk_idx.max() < len(weights.gate_proj):
        raise ValueError(f"topk_idx names an expert that is none of {len(weights.gate_proj)}")
    by_slot = scratch[: n_tokens * n_slots * hidden_size].reshape(-1, hidden_size)  # f32 (T K, D)
    order = np.argsort(topk_idx, axis=None, kind="stable")  # slots, sorted by expert
    hit, first, count = np.unique(topk_idx.ravel()[order], return_index=True, return_counts=True)
    todo = deque(np.argsort(-count, kind="stable").tolist())

    def take_experts(_first: int, _stop: int) -> None:
        while True:
            try:
                which = todo.popleft()
            except IndexError:
                return
            slots = order[first[which] : first[which] + count[which]]
            by_slot[slots] = _expert(int(hit[which]), x[slots // n_slots], weights)

    threads = threads_for(n_threads, topk_idx.size * hidden_size * intermediate_size)
    park()
    with one_blas_thread():
        run_rows(take_experts, threads, threads)
    np.multiply(by_slot, topk_weight.reshape(-1, 1), out=by_slot)
    out.fill(0)
    for slot in range(n_slots):
        out += by_slot[slot::n_slots]


def _expert(expert: int, x: np.ndarray, weights: ExpertWeights) -> np.ndarray:
    """down(silu(gate(x)) * up(x)) of one expert: x f32 (S, D) -> f32 (S, D)."""
    columns = np.ascontiguousarray(x.T)  # f32 (D, S)
    gate = np.empty((weights.intermediate_size, len(x)), np.float32)
    up = np.empty_like(gate)
    multiply_columns(weights.gate_proj[expert], columns, gate)
    multiply_columns(weights.up_proj[expert], columns, up)
    _kernels.swiglu(gate, up, gate, n_threads=1)
    multiply_columns(weights.down_proj[expert], gate, columns)
    return columns.T
