"""expert_gate with Numba; contract in `expert_gate.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels.expert_gate import check


@jit()
def _highest(values: np.ndarray, n: int, found: np.ndarray) -> None:
    """found[:n] = indices of the n highest values, falling; the lowest index first among equals."""
    count = 0
    for i in range(values.size):
        if count == n and not values[i] > values[found[n - 1]]:
            continue
        if count < n:
            count += 1
        place = count - 1
        while place > 0 and values[i] > values[found[place - 1]]:
            found[place] = found[place - 1]
            place -= 1
        found[place] = i


@jit()
def _score_row(logits: np.ndarray, softmax: bool, scores: np.ndarray) -> None:
    one = np.float32(1)
    if not softmax:
        for e in range(logits.size):
            scores[e] = one / (one + np.exp(-logits[e]))
        return
    highest = np.float32(-np.inf)
    for e in range(logits.size):
        highest = max(highest, logits[e])
    total = np.float32(0)
    for e in range(logits.size):
        scores[e] = np.exp(logits[e] - highest)
        total += scores[e]
    for e in range(logits.size):
        scores[e] /= total


@jit()
def _drop_groups(
    choice: np.ndarray,
    scores: np.ndarray,
    n_group: int,
    topk_group: int,
    is_noaux: bool,
    by_group: np.ndarray,
    kept: np.ndarray,
) -> None:
    size = choice.size // n_group
    for g in range(n_group):
        best, second = np.float32(-np.inf), np.float32(-np.inf)
        for e in range(g * size, (g + 1) * size):
            if choice[e] > best:
                best, second = choice[e], best
            elif choice[e] > second:
                second = choice[e]
        by_group[g] = best + second if is_noaux and size > 1 else best
    _highest(by_group, topk_group, kept)
    for g in range(n_group):
        is_kept = False
        for j in range(topk_group):
            is_kept |= kept[j] == g
        if not is_kept:
            for e in range(g * size, (g + 1) * size):
                choice[e] = np.float32(-np.inf) if is_noaux else np.float32(0)
                if not is_noaux:
                    scores[e] = np.float32(0)


@jit()
def _rows(
    first: int,
    stop: int,
    logits: np.ndarray,
    bias: np.ndarray,
    top_k: int,
    n_group: int,
    topk_group: int,
    softmax: bool,
    by_groups: bool,
    is_noaux: bool,
    normalise: bool,
    factor: np.float32,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
) -> None:
    n_experts = logits.shape[1]
    scores, choice = np.empty(n_experts, np.float32), np.empty(n_experts, np.float32)
    by_group, kept = np.empty(max(n_group, 1), np.float32), np.empty(max(topk_group, 1), np.int32)
    for t in range(first, stop):
        _score_row(logits[t], softmax, scores)
        for e in range(n_experts):
            choice[e] = scores[e] + bias[e]
            if np.isnan(choice[e]):
                choice[e] = np.float32(-np.inf)
        if by_groups:
            _drop_groups(choice, scores, n_group, topk_group, is_noaux, by_group, kept)
        _highest(choice, top_k, topk_idx[t])
        total = np.float32(1e-20)
        for j in range(top_k):
            total += scores[topk_idx[t, j]]
        for j in range(top_k):
            weight = scores[topk_idx[t, j]]
            topk_weight[t, j] = (weight / total if normalise else weight) * factor


def expert_gate(
    logits: np.ndarray,
    bias: np.ndarray | None,
    top_k: int,
    n_group: int,
    topk_group: int,
    scoring_func: str,
    topk_method: str,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
    *,
    n_threads: int,
) -> None:
    need(logits, "logits", np.float32, None, None)
    n_tokens, n_experts = logits.shape
    check(n_experts, top_k, n_group, topk_group, scoring_func, topk_method)
    how = (scoring_func == "softmax", topk_method != "greedy", topk_method == "noaux_tc", bool(norm_topk_prob))
    given = np.zeros(n_experts, np.float32) if bias is None else bias
    need(given, "bias", np.float32, n_experts)
    need_output(topk_idx, "topk_idx", n_tokens, top_k, dtype=np.int32)
    need_output(topk_weight, "topk_weight", n_tokens, top_k)
    factor = np.float32(routed_scaling_factor)
    run_rows(
        _rows,
        n_tokens,
        n_threads,
        logits,
        given,
        top_k,
        n_group,
        topk_group,
        *how,
        factor,
        topk_idx,
        topk_weight,
    )
