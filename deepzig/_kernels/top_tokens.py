"""top_tokens: the tokens that a request may draw from, and their probabilities (HF logits_process.py).

    p = softmax(logits / temperature), then in this order
    top_k      keeps the k most likely (0: all); p is then renormalised
    top_p      keeps the fewest most likely whose p reach top_p (1: all)
    min_p      keeps those with p of at least min_p times the greatest

token_ids, probs: the kept ones, most likely first and lower ids first among equals; in order of ids if top_k and top_p
cut nothing. Behind them -1 and 0. probs are not renormalised after top_p. Called by `engine.sampling`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

ISAS = ("plain", "avx2", "avx512")
TOLERANCE = {"rtol": 2e-6, "atol": 1e-9}
CUTS = ((0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8765, 0.0), (40, 0.4321, 0.0), (0, 1.0, 0.1), (7, 0.9531, 0.2))


def reference(
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
    """logits f32 (V,), finite or -inf, at least one finite; temperature > 0; token_ids i32 (V,); probs f32 (V,)."""
    p = np.exp((logits - logits.max()) / np.float32(temperature))
    kept = np.arange(len(p))
    if 0 < top_k < len(p) or top_p < 1:
        kept = np.argsort(-p, kind="stable")[: top_k or None]
        p = p[kept] / p[kept].sum(dtype=np.float64)
        n = int(np.searchsorted(np.cumsum(p, dtype=np.float64), top_p)) + 1 if top_p < 1 else len(p)
        kept, p = kept[:n], p[:n]
    else:
        p = p / p.sum(dtype=np.float64)
    likely = p >= np.float32(min_p) * p.max()
    n = int(likely.sum())
    token_ids[:n], probs[:n] = kept[likely], p[likely]
    token_ids[n:], probs[n:] = -1, 0


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Peaked and flat distributions, ties, one token, masked tokens, every combination of cuts."""
    for size in (1, 5, 1000):
        peaked = rng.standard_normal(size, np.float32) * np.float32(4)
        masked = np.where(np.arange(size) % 3 == 0, peaked, np.float32(-np.inf)).astype(np.float32)
        for logits in (peaked, np.zeros(size, np.float32), np.round(peaked), masked):
            for temperature in (0.02, 0.3, 1.0):
                for top_k, top_p, min_p in CUTS:
                    yield logits, temperature, top_k, top_p, min_p, np.empty(size, np.int32), np.empty(size, np.float32)


def cost(
    logits: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    token_ids: np.ndarray,
    probs: np.ndarray,
) -> tuple[int, int]:
    """(bytes moved, floating-point operations); an exp counts as ten."""
    return logits.nbytes + token_ids.nbytes + probs.nbytes, 12 * logits.size
