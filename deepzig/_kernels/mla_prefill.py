"""mla_prefill: causal attention of prompt rows over a tile of expanded keys and values (FlashAttention, by tiles).

    score[t, h, s] = softmax_scale * (q_nope[t, h] . k_nope[s, h] + q_pe[t, h] . k_pe[s])
                     for first_key + s <= first_query + t
    out, running_max, running_sum: continued from the tiles before; the last tile's caller divides out by running_sum

Keys and values of a tile come from kv_b_proj applied to cached rows, so that nothing of size T x S, nor all expanded
keys, exists at once. A row does not depend on the other rows, nor on n_threads. arithmetic as in `linear`: FAST allows
queries, keys, probabilities and values to be rounded once to bfloat16 (1e-2 of a weighted sum); sums and softmax stay
float32. DECODING and EXACT round nothing. Implementations may ignore it.
Called by `model.attention`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepzig._kernels.weight import DECODING

ISAS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")
TOLERANCE = {"rtol": 0.0, "atol": 5e-5}


def reference(
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
    """
    q f32 (T, H, N + P); kv f32 (S, H, N + V); k_pe f32 (S, P); all C-contiguous
    first_query, first_key: positions of the first query and key
    running_max, running_sum f32 (T, H), at first -inf and 0; out f32 (T, H, V), at first 0, not yet divided
    """
    rope_dim = k_pe.shape[1]
    nope = q.shape[2] - rope_dim
    scores = np.einsum("thn,shn->ths", q[:, :, :nope], kv[:, :, :nope])
    scores += np.einsum("thp,sp->ths", q[:, :, nope:], k_pe)
    scores *= np.float32(softmax_scale)
    visible = first_key + np.arange(len(kv))[None] <= first_query + np.arange(len(q))[:, None]  # (T, S)
    scores = np.where(visible[:, None], scores, np.float32(-np.inf))
    new_max = np.maximum(running_max, scores.max(axis=2))
    shift = np.where(np.isfinite(new_max), new_max, 0)
    probs = np.exp(scores - shift[:, :, None])
    keep = np.exp(running_max - shift)
    running_sum[...] = running_sum * keep + probs.sum(axis=2)
    out[...] = out * keep[:, :, None] + np.einsum("ths,shv->thv", probs, kv[:, :, nope:])
    running_max[...] = new_max


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """A first tile, a later tile that all queries see, one that some do not see; odd sizes."""
    for n_heads, nope, rope_dim, value_dim in ((4, 32, 16, 48), (2, 128, 64, 128), (3, 5, 6, 7)):
        for n_rows, n_keys, first_query, first_key in ((1, 1, 0, 0), (37, 37, 0, 0), (5, 64, 64, 0), (70, 40, 10, 20)):
            q = rng.standard_normal((n_rows, n_heads, nope + rope_dim), np.float32)
            kv = rng.standard_normal((n_keys, n_heads, nope + value_dim), np.float32)
            k_pe = rng.standard_normal((n_keys, rope_dim), np.float32)
            running_max = rng.standard_normal((n_rows, n_heads), np.float32)
            running_sum = rng.random((n_rows, n_heads), np.float32) + np.float32(1)
            out = rng.standard_normal((n_rows, n_heads, value_dim), np.float32)
            if first_key == 0:
                running_max[:], running_sum[:], out[:] = -np.inf, 0, 0
            yield q, kv, k_pe, first_query, first_key, 0.1, running_max, running_sum, out


def cost(
    q: np.ndarray,
    kv: np.ndarray,
    k_pe: np.ndarray,
    first_query: int,
    first_key: int,
    softmax_scale: float,
    running_max: np.ndarray,
    running_sum: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:
    """(bytes moved, floating-point operations), causal half counted."""
    visible = sum(min(len(kv), max(0, first_query + t - first_key + 1)) for t in range(len(q)))
    flops = 2 * visible * q.shape[1] * (q.shape[2] + out.shape[2])
    return kv.nbytes + k_pe.nbytes + q.nbytes + 2 * out.nbytes, flops
