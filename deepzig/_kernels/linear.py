"""linear: y = x W^T for a weight in any format, the product that nearly all time goes into.

    out[t, n] = sum_k x[t, k] * W[n, k]

Products are as accurate as float32 arithmetic, in one of the ways of `ways.h`; with int8 and int4 weights an x may lose
2^-24 of the largest of up to 512 columns around it. A row of `out` does not depend on the other rows, nor on n_threads.
`arithmetic` lets an implementation take another way for prompts; it may be ignored:

    DECODING  rows that are decoded, and prompts that must have the same bits as if they were
    EXACT     rows of a prompt, as accurate as float32, but with other last bits
    FAST      rows of a prompt whose x may be rounded as far as to bfloat16 (1e-2 of a product; infinity may become NaN)

Called by `model.linear`; the formats are those of `weight.Weight`.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.dequantize import reference as dequantize_reference
from deepzig._kernels.weight import DECODING, Weight
from deepzig._kernels.weight_cases import random_weights

ISAS = ("plain", "avx2", "avx512", "avx512_vnni", "amx")
PORTABLE = ("numba", "blas")
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}  # sums of a few hundred products of order 1e-1


def reference(x: np.ndarray, weight: Weight, out: np.ndarray, *, arithmetic: int = DECODING, n_threads: int) -> None:
    """x f32 (T, K), rows contiguous; weight (N, K); out f32 (T, N), rows contiguous."""
    decoded = np.empty(weight.shape, np.float32)
    dequantize_reference(weight, all_rows(weight), decoded, n_threads=n_threads)
    np.matmul(x if arithmetic == DECODING else sum_of_bf16(x, arithmetic), decoded.T, out=out)


def sum_of_bf16(x: np.ndarray, n_terms: int) -> np.ndarray:
    """x f32 as the sum of n_terms bf16 numbers, each the rounding of what the ones before leave."""
    total, rest = np.zeros_like(x), np.array(x)
    for _ in range(n_terms):
        term = rest.astype(ml_dtypes.bfloat16).astype(np.float32)
        total, rest = total + term, rest - term
    return total


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """One and many rows, every format, sizes that fill no vector and no group."""
    for shape in ((1, 1), (33, 64), (50, 256), (129, 384), (7, 100)):
        for weight in random_weights(rng, shape):
            for x_rows in (1, 2, 5, 13):
                x = rng.standard_normal((x_rows, shape[1]), np.float32) * np.float32(0.1)
                yield x, weight, np.empty((x_rows, shape[0]), np.float32)


def cost(x: np.ndarray, weight: Weight, out: np.ndarray) -> tuple[int, int]:
    """(bytes moved, floating-point operations)."""
    return weight.nbytes + x.nbytes + out.nbytes, 2 * x.shape[0] * weight.shape[0] * weight.shape[1]
