"""experts: the routed experts of a MoE layer for all tokens of a step (DeepSeek-V3 report, eq. 12: the sum
over routed experts).

    out[t] = sum_j topk_weight[t, j] * down_e(silu(gate_e(x[t])) * up_e(x[t])),   e = topk_idx[t, j]

Tokens are grouped by expert, so that each expert's weights are read once a call. The sum over j runs in slot order
whatever the grouping, so a row does not depend on the other rows, nor on n_threads. arithmetic as in `linear`.
Called by `model.moe`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepzig._kernels.linear import reference as linear_reference
from deepzig._kernels.swiglu import reference as swiglu_reference
from deepzig._kernels.weight import DECODING, ExpertWeights
from deepzig._kernels.weight_cases import random_weights

ISAS = ("plain", "avx2", "avx512", "avx512_vnni", "amx")
PORTABLE = ("numba", "blas")
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
MAX_PADDING = 16 + 32  # floats behind an activation: to a whole vector, and between rows


def scratch_size(n_tokens: int, n_slots: int, hidden_size: int, intermediate_size: int) -> int:
    """Floats that a call with topk_idx (n_tokens, n_slots) needs: a padded activation and an output for each slot."""
    return n_tokens * n_slots * (hidden_size + intermediate_size + MAX_PADDING)


def reference(
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
    """x f32 (T, D), topk_idx i32 (T, K), topk_weight f32 (T, K), scratch f32 (>= scratch_size,), out f32 (T, D)."""
    by_slot = np.zeros((*topk_idx.shape, x.shape[1]), np.float32)  # (T, K, D)
    for expert in np.unique(topk_idx):
        token, slot = np.nonzero(topk_idx == expert)
        gate = np.empty((len(token), weights.intermediate_size), np.float32)
        up = np.empty_like(gate)
        down = np.empty((len(token), weights.hidden_size), np.float32)
        linear_reference(x[token], weights.gate_proj[expert], gate, arithmetic=arithmetic, n_threads=n_threads)
        linear_reference(x[token], weights.up_proj[expert], up, arithmetic=arithmetic, n_threads=n_threads)
        swiglu_reference(gate, up, gate, n_threads=n_threads)
        linear_reference(gate, weights.down_proj[expert], down, arithmetic=arithmetic, n_threads=n_threads)
        by_slot[token, slot] = down * topk_weight[token, slot, None]
    np.sum(by_slot, axis=1, out=out)


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Experts that get no token, one, or many; sizes that fill no vector; matrices of one format, and of three."""
    for hidden, intermediate, n_experts, n_slots, apart in ((64, 48, 8, 3, 0), (100, 36, 5, 2, 0), (136, 48, 4, 2, 1)):
        shapes = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
        stored = [[list(random_weights(rng, shape)) for _ in range(n_experts)] for shape in shapes]
        n_formats = len(stored[0][0])
        for which in range(n_formats):
            formats = [(which + apart * matrix) % n_formats for matrix in range(3)]
            weights = ExpertWeights(
                *([expert[one] for expert in proj] for proj, one in zip(stored, formats, strict=True))
            )
            for n_tokens in (1, 3, 40):
                x = rng.standard_normal((n_tokens, hidden), np.float32) * np.float32(0.05)
                topk_idx = np.stack([rng.permutation(n_experts)[:n_slots] for _ in range(n_tokens)]).astype(np.int32)
                topk_weight = rng.random((n_tokens, n_slots), np.float32)
                scratch = np.empty(scratch_size(n_tokens, n_slots, hidden, intermediate), np.float32)
                yield x, topk_idx, topk_weight, weights, scratch, np.empty_like(x)


def cost(
    x: np.ndarray,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
    weights: ExpertWeights,
    scratch: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:
    """(bytes moved, floating-point operations): the weights of the experts that are hit, once each."""
    hit = np.unique(topk_idx)
    weight_bytes = sum(w[e].nbytes for e in hit for w in (weights.gate_proj, weights.up_proj, weights.down_proj))
    flops = 6 * topk_idx.size * weights.hidden_size * weights.intermediate_size
    return weight_bytes + x.nbytes + out.nbytes, flops
