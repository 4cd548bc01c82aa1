"""softmax over each row: out[t] = exp(x[t] - max(x[t])) / sum(exp(x[t] - max(x[t]))).

x    f32 (T, S), rows may lie further apart than S; -inf is allowed
out  f32 (T, S), likewise; may be x itself

A row of -inf only gives zeros: nothing is visible, so nothing has weight. A row with NaN or +inf gives NaN. Sums are
f32 in a fixed order per row, whatever T and n_threads.

No step of the model calls it: attention and the router have a softmax of their own within.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

ISAS = ("plain", "avx2", "avx512")
TOLERANCE = {"rtol": 3e-6, "atol": 1e-37}


def reference(x: np.ndarray, out: np.ndarray, *, n_threads: int) -> None:
    highest = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    highest = np.where(np.isneginf(highest), np.float32(0), highest)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf makes the row NaN; -inf below the range is right
        exps = np.exp(x - highest, dtype=np.float64)
        total = exps.sum(axis=-1, keepdims=True)
        out[...] = exps / np.where(total == 0, 1, total)


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """(x, out): ragged sizes, masks, rows without anything visible, large values, NaN."""
    for n_rows, size in [(0, 8), (1, 1), (1, 7), (3, 16), (2, 33), (5, 257), (1, 4096), (40, 1000)]:
        x = rng.standard_normal((n_rows, size), dtype=np.float32) * np.float32(4)
        yield x, np.empty_like(x)
    causal = np.where(np.tri(37, dtype=bool), rng.standard_normal((37, 37), dtype=np.float32), np.float32(-np.inf))
    yield causal, np.empty((37, 40), np.float32)[:, :37]
    odd = np.full((5, 19), -np.inf, np.float32)
    odd[1, 18], odd[2, 3], odd[3, :] = 1e30, np.nan, np.linspace(-3e38, 3e38, 19)
    odd[4, :] = np.linspace(-105, 0, 19)
    yield odd, np.empty_like(odd)


def cost(x: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    return x.nbytes + out.nbytes, 20 * x.size
