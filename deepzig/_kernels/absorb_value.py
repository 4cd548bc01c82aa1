"""absorb_value: attention output, moved from the latent space to the heads (DeepSeek-V2 report, section 2.1.2), the
counterpart of `absorb_query`.

    out[t, h, v] = sum_r o_latent[t, h, r] * W_UV[h, v, r]

W_UV[h] are the last V rows of head h in kv_b_proj (H (N + V), R), read where they lie. Called by `model.attention`.
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


def reference(o_latent: np.ndarray, kv_b_proj: Weight, out: np.ndarray, *, n_threads: int) -> None:
    """o_latent f32 (T, H, R), kv_b_proj (H (N + V), R), out f32 (T, H, V); all C-contiguous."""
    n_heads, value_dim = out.shape[1:]
    decoded = np.empty(kv_b_proj.shape, np.float32)
    dequantize_reference(kv_b_proj, all_rows(kv_b_proj), decoded, n_threads=n_threads)
    w_uv = decoded.reshape(n_heads, -1, kv_b_proj.shape[1])[:, -value_dim:]  # (H, V, R)
    out[...] = np.einsum("thr,hvr->thv", o_latent, w_uv)


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """The shapes of the stories model, of V3's heads, and odd ones."""
    for n_heads, nope, value_dim, rank in ((4, 32, 48, 64), (3, 128, 128, 512), (2, 5, 7, 36)):
        for weight in random_weights(rng, (n_heads * (nope + value_dim), rank)):
            for n_rows in (0, 1, 6):
                o_latent = rng.standard_normal((n_rows, n_heads, rank), np.float32) * np.float32(0.1)
                yield o_latent, weight, np.empty((n_rows, n_heads, value_dim), np.float32)


def cost(o_latent: np.ndarray, kv_b_proj: Weight, out: np.ndarray) -> tuple[int, int]:
    """(bytes moved, floating-point operations)."""
    n_heads, value_dim = out.shape[1:]
    share = n_heads * value_dim / kv_b_proj.shape[0]
    return int(kv_b_proj.nbytes * share) + o_latent.nbytes + out.nbytes, 2 * o_latent.size * value_dim
