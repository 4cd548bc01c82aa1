"""dequantize: rows of a stored matrix as floats, out[t, k] = value(codes[n, k]) * scale, n = rows[t].

weight  Weight (N, K) of any format; `weight.py` says what codes and scales mean
rows    i32 (T,), each from 0 to N - 1, in any order
out     f32 (T, K), rows may lie further apart than K

Value times scale is one float32 product: implementations agree bit for bit. The NaN codes of fp8 (0x7f, 0xff) and of
f16 and bf16 give NaN.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

ISAS = ("plain", "avx2", "avx512")
TOLERANCE = {"rtol": 0.0, "atol": 0.0}


def values_of(weight: Weight, codes: np.ndarray) -> np.ndarray:
    """The values of rows of codes, unscaled, f32 (T, K)."""
    n_columns = weight.shape[1]
    match weight.format:
        case "f32":
            return codes
        case "f16":
            with np.errstate(invalid="ignore"):  # NumPy warns of some NaN on aarch64
                return codes.view(np.float16).astype(np.float32)
        case "bf16":
            return (codes.astype(np.uint32) << 16).view(np.float32)
        case "fp8":
            return codes[:, :n_columns].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        case "int8":
            return (codes[:, :n_columns] - np.uint8(weight.offset)).view(np.int8).astype(np.float32)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), 2 * codes.shape[1])[:, :n_columns]
    return nibbles.astype(np.float32) - np.float32(8)


def scales_of(weight: Weight) -> np.ndarray | None:
    """The scales as stored, decoded: f32 (ceil(N / block_rows), ceil(K / group_size)), or None."""
    match weight.scale, weight.scale_format:
        case None, _:
            return None
        case scale, "f16":
            return scale.view(np.float16).astype(np.float32)
        case scale, "bf16":
            return (scale.astype(np.uint32) << 16).view(np.float32)
        case scale, _:
            return scale


def all_rows(weight: Weight) -> np.ndarray:
    """i32 (N,), the numbers of its rows."""
    return np.arange(weight.shape[0], dtype=np.int32)


def reference(weight: Weight, rows: np.ndarray, out: np.ndarray, *, n_threads: int) -> None:
    values = values_of(weight, weight.codes[rows])
    scales = scales_of(weight)
    if scales is not None:
        per_row = scales[rows // weight.block_rows]
        values = values * np.repeat(per_row, weight.group_size, axis=1)[:, : weight.shape[1]]
    out[...] = values


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """(weight, rows, out): every format, ragged sizes and groups, every code of every byte format."""
    for shape in ((1, 1), (5, 100), (33, 64), (130, 260), (129, 384)):
        for weight in random_weights(rng, shape):
            yield weight, all_rows(weight), np.empty(shape, np.float32)
            some = rng.integers(0, shape[0], 1 + shape[0] // 2).astype(np.int32)  # in any order, some of them twice
            yield weight, some, np.empty((len(some), shape[1] + 3), np.float32)[:, : shape[1]]
    every_byte = np.tile(np.arange(256, dtype=np.uint8), (2, 2))
    scale = np.array([[0.7], [1e-3]], np.float32)
    nothing = np.empty(0, np.int32), np.empty((0, 512), np.float32)
    yield Weight("int8", (2, 512), every_byte, scale, "f32", 512), *nothing
    every_half = np.arange(65536, dtype=np.uint16).reshape(64, 1024)
    for weight in (
        Weight("fp8", (2, 512), every_byte, scale, "f32", 512),
        Weight("int8", (2, 512), every_byte, scale, "f32", 512, offset=128),
        Weight("int4", (2, 1024), every_byte, scale, "f32", 1024),
        Weight("f16", (64, 1024), every_half),
        Weight("bf16", (64, 1024), every_half),
    ):
        yield weight, all_rows(weight), np.empty(weight.shape, np.float32)


def cost(weight: Weight, rows: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    return weight.nbytes * out.shape[0] // max(1, weight.shape[0]) + out.nbytes, out.size
