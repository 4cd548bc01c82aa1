"""Candidates for drawing a token, with Numba; contract in `top_tokens.py`."""

import numpy as np

from deepzig._kernels._array_checks import need, need_output
from deepzig._kernels._numba_jit import jit


@jit()
def _choose(
    logits: np.ndarray,
    temperature: np.float32,
    top_k: int,
    top_p: float,
    min_p: np.float32,
    token_ids: np.ndarray,
    probs: np.ndarray,
) -> None:
    size = len(logits)
    highest = logits.max()
    total = np.float64(0)
    for i in range(size):
        probs[i] = np.exp((logits[i] - highest) / temperature)
        total += probs[i]
    n = size
    kept = np.arange(size)
    if 0 < top_k < size or top_p < 1:
        kept = np.argsort(-probs, kind="mergesort")  # stable
        if 0 < top_k < size:
            n = top_k
            total = np.float64(0)
            for i in range(n):
                total += probs[kept[i]]
        reached = np.float64(0)
        for i in range(n):
            reached += np.float32(probs[kept[i]] / total)
            if top_p < 1 and reached >= top_p:
                n = i + 1
                break
    chosen = np.empty(n, np.float32)
    for i in range(n):
        chosen[i] = probs[kept[i]] / total
    greatest = chosen.max()
    n_kept = 0
    for i in range(n):
        if chosen[i] >= min_p * greatest:
            token_ids[n_kept] = kept[i]
            probs[n_kept] = chosen[i]
            n_kept += 1
    token_ids[n_kept:] = -1
    probs[n_kept:] = 0


def top_tokens(
    logits: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    token_ids: np.ndarray,
    probs: np.ndarray,
    *,
    n_threads: int,
) -> None:
    need(logits, "logits", np.float32, None)
    need_output(token_ids, "token_ids", len(logits), dtype=np.int32)
    need_output(probs, "probs", len(logits))
    _choose(logits, np.float32(temperature), top_k, np.float32(top_p), np.float32(min_p), token_ids, probs)
