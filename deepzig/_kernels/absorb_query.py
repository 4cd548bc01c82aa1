"""absorb_query: the query's content part, moved into the latent space (DeepSeek-V2 report, section 2.1.2).

    out[t, h, r] = sum_n q_nope[t, h, n] * W_UK[h, n, r]

W_UK[h] are rows h (N + V) to h (N + V) + N of kv_b_proj (H (N + V), R), read where they lie. Called by
`model.attention`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.dequantize import reference as dequantize_reference
from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

ISAS = ("plain", "avx2", "avx512", "avx512_vnni")
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}


def reference(q_nope: np.ndarray, kv_b_proj: Weight, out: np.ndarray, *, n_threads: int) -> None:
    """q_nope f32 (T, H, N), kv_b_proj (H (N + V), R), out f32 (T, H, R); last axes contiguous, others of any stride."""
    n_heads, nope = q_nope.shape[1:]
    decoded = np.empty(kv_b_proj.shape, np.float32)
    dequantize_reference(kv_b_proj, all_rows(kv_b_proj), decoded, n_threads=n_threads)
    w_uk = decoded.reshape(n_heads, -1, kv_b_proj.shape[1])[:, :nope]  # (H, N, R)
    out[...] = np.einsum("thn,hnr->thr", q_nope, w_uk)


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Queries that are slices of wider rows, as the model passes them."""
    for n_heads, nope, value_dim, rank in ((4, 32, 48, 64), (3, 128, 128, 512), (2, 5, 7, 36)):
        for weight in random_weights(rng, (n_heads * (nope + value_dim), rank)):
            for n_rows in (1, 3):
                query = rng.standard_normal((n_rows, n_heads, nope + 8), np.float32) * np.float32(0.1)
                out = np.empty((n_rows, n_heads, rank + 8), np.float32)
                yield query[:, :, :nope], weight, out[:, :, :rank]


def cost(q_nope: np.ndarray, kv_b_proj: Weight, out: np.ndarray) -> tuple[int, int]:
    """(bytes moved, floating-point operations)."""
    n_heads, nope = q_nope.shape[1:]
    share = n_heads * nope / kv_b_proj.shape[0]
    return int(kv_b_proj.nbytes * share) + 4 * (q_nope.size + out.size), 2 * q_nope.size * out.shape[2]
