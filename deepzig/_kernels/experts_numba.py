"""experts with Numba; contract in `experts.py`.

Slots (token, j) are sorted by expert. A thread takes the same rows of every expert's matrices, so that threads have
equal work however the tokens fall on the experts.
"""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import FROM_0, dot_rows
from deepzig._kernels.weight import DECODING, ExpertWeights


@jit()
def _activation_rows(
    first: int,
    stop: int,
    matrices: np.ndarray,
    start: np.ndarray,
    x: np.ndarray,
    tokens: np.ndarray,
    places: np.ndarray,
    activation: np.ndarray,
) -> None:
    """activation[:, first:stop] = silu(gate) * up of all sorted slots."""
    one = np.float32(1)
    most = 0
    for expert in range(start.size - 1):
        most = max(most, start[expert + 1] - start[expert])
    products = np.empty((2 * most, stop - first), np.float32)  # gate, then up, of one expert's slots
    for expert in range(start.size - 1):
        begin, end = start[expert], start[expert + 1]
        count = end - begin
        if count == 0:
            continue
        for which in range(2):
            rows = places[which * count : (which + 1) * count]
            dot_rows(matrices[expert, which], first, stop, x, tokens[begin:end], products, rows, FROM_0)
        for j in range(count):
            for i in range(stop - first):
                gate, up = products[j, i], products[count + j, i]
                activation[begin + j, first + i] = gate / (one + np.exp(-gate)) * up


@jit()
def _output_rows(
    first: int,
    stop: int,
    matrices: np.ndarray,
    start: np.ndarray,
    activation: np.ndarray,
    places: np.ndarray,
    place_of_slot: np.ndarray,
    topk_weight: np.ndarray,
    by_place: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[:, first:stop]: each slot's down_proj, then the weighted sum in order of slots."""
    for expert in range(start.size - 1):
        rows = places[start[expert] : start[expert + 1]]
        if rows.size > 0:
            dot_rows(matrices[expert, 2], first, stop, activation, rows, by_place, rows, first)
    for t in range(topk_weight.shape[0]):
        for d in range(first, stop):
            out[t, d] = np.float32(0)
        for j in range(topk_weight.shape[1]):
            place, weight = place_of_slot[t * topk_weight.shape[1] + j], topk_weight[t, j]
            for d in range(first, stop):
                out[t, d] += weight * by_place[place, d]


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
    hidden, intermediate = weights.hidden_size, weights.intermediate_size
    need(x, "x", np.float32, None, hidden)
    need(topk_idx, "topk_idx", np.int32, len(x), None)
    need(topk_weight, "topk_weight", np.float32, *topk_idx.shape)
    need_output(scratch, "scratch", None)
    need_output(out, "out", *x.shape)
    total = topk_idx.size
    if scratch.size < total * (hidden + intermediate):
        raise ValueError(f"scratch has {scratch.size} floats, fewer than experts.scratch_size")
    start = _first_places(topk_idx, len(weights))
    slots = np.argsort(topk_idx, axis=None, kind="stable")  # i64 (T K,): slot at each sorted place
    places = np.arange(2 * total)
    place_of_slot = np.empty(total, np.int64)
    place_of_slot[slots] = places[:total]
    activation = scratch[: total * intermediate].reshape(total, intermediate)
    by_place = scratch[total * intermediate :][: total * hidden].reshape(total, hidden)
    threads = threads_for(n_threads, total * hidden * intermediate)
    matrices, result = weights.descriptors, packed(out)
    tokens = slots // max(1, topk_idx.shape[1])
    run_rows(_activation_rows, intermediate, threads, matrices, start, packed(x), tokens, places, activation)
    tables = (places, place_of_slot, packed(topk_weight), by_place)
    run_rows(_output_rows, hidden, threads, matrices, start, activation, *tables, result)
    unpack(result, out)


def _first_places(topk_idx: np.ndarray, n_experts: int) -> np.ndarray:
    """i64 (E + 1,): where each expert's slots begin when slots are sorted by expert."""
    if topk_idx.size and not 0 <= topk_idx.min() <= topk_idx.max() < n_experts:
        raise ValueError(f"topk_idx names experts {topk_idx.min()} to {topk_idx.max()} of {n_experts}")
    start = np.zeros(n_experts + 1, np.int64)
    np.cumsum(np.bincount(topk_idx.ravel(), minlength=n_experts), out=start[1:])
    return start
