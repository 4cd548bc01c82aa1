"""Rounding to int8, int4 and fp8 written out in NumPy: the reference of `checkpoint.rounding_numba`.

Called by `random_weights` and by the tests; calls `scale_search` for int4, and `rounding` for plain floats. Knows no
files. Integer codes are chosen against the scale as it is stored, rounded to bf16.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from deepzig._kernels.weight import Weight
from deepzig.checkpoint.rounding import cast
from deepzig.checkpoint.scale_search import search_int4
from deepzig.checkpoint.schemes import FP8_BLOCK, GROUP_SIZES

FP8_MAX = 448.0  # greatest float8_e4m3fn
SLAB_VALUES = 1 << 22  # rows are worked on in slabs of about this many values, so that scratch memory stays small


def group_size_for(n_columns: int) -> int:
    """G for int8: the largest of 128, 64, 32 that divides K, else K (one scale a row)."""
    return next((size for size in sorted(GROUP_SIZES, reverse=True) if n_columns % size == 0), n_columns)


def plain_weight(values: np.ndarray, name: str) -> Weight:
    """`values` f32 (N, K) in the format "f32", "bf16" or "f16"."""
    codes = np.ascontiguousarray(values, np.float32) if name == "f32" else cast(values, name)
    return Weight(name, (values.shape[0], values.shape[1]), codes)


def quantize_int8(weight: np.ndarray, group_size: int) -> Weight:
    """int8 in groups of K, symmetric: scale = max |w| / 127, code = round(w / scale).

    `weight` f32 (N, K), finite; `group_size` divides K. The Weight is laid out as pack-quantized: offset 128, rows
    padded to whole 32-bit words. Raises ValueError for other input.
    """
    n_rows, n_columns = _check(weight, group_size)
    codes = np.zeros((n_rows, -(-n_columns // 4) * 4), dtype=np.uint8)
    scale = np.empty((n_rows, n_columns // group_size), dtype=np.uint16)
    for rows in _slabs(weight.shape):
        groups = weight[rows].reshape(-1, scale.shape[1], group_size)
        scale[rows] = _bf16_scale(_amax(groups) / 127)
        stored = _bf16_values(scale[rows])[:, :, None]
        signed = np.clip(np.rint(groups / stored), -127, 127).astype(np.int8)
        codes[rows, :n_columns] = signed.view(np.uint8).reshape(-1, n_columns) ^ 128
    return Weight("int8", (n_rows, n_columns), codes, scale, "bf16", group_size, offset=128)


def quantize_int4(weight: np.ndarray, group_size: int, importance: np.ndarray | None = None) -> Weight:
    """int4 in groups of K, symmetric, code in [-8, 7], each scale searched for the least squared error.

    `weight` f32 (N, K), finite; `group_size` divides K; `importance` f32 (K,) says what the squared error of a column
    counts for, by default the same for all. The Weight is laid out as pack-quantized: two codes a byte, rows padded to
    whole 32-bit words. Raises ValueError for other input.
    """
    n_rows, n_columns = _check(weight, group_size)
    codes = np.zeros((n_rows, -(-n_columns // 8) * 4), dtype=np.uint8)
    scale = np.empty((n_rows, n_columns // group_size), dtype=np.uint16)
    counts = (np.ones(n_columns, np.float32) if importance is None else importance).reshape(-1, group_size)
    for rows in _slabs(weight.shape):
        groups = weight[rows].reshape(-1, scale.shape[1], group_size)
        amax = _amax(groups)
        signed = np.empty(groups.shape, dtype=np.int8)
        search_int4(np.ascontiguousarray(groups), amax, counts, scale[rows], signed)
        nibbles = np.zeros((groups.shape[0], -(-n_columns // 2) * 2), dtype=np.uint8)
        nibbles[:, :n_columns] = signed.reshape(-1, n_columns) + 8
        codes[rows, : nibbles.shape[1] // 2] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return Weight("int4", (n_rows, n_columns), codes, scale, "bf16", group_size)


def quantize_fp8(weight: np.ndarray) -> Weight:
    """float8 e4m3 in blocks of 128 x 128 as DeepSeek's releases: scale = max |w| / 448, f32.

    `weight` f32 (N, K), finite, else ValueError. Rows and columns need be no multiples of 128.
    """
    n_rows, n_columns = _check(weight, 1)
    codes = np.empty((n_rows, n_columns), dtype=np.uint8)
    scale = np.empty((-(-n_rows // FP8_BLOCK), -(-n_columns // FP8_BLOCK)), dtype=np.float32)
    starts = np.arange(0, n_columns, FP8_BLOCK)
    for block in range(scale.shape[0]):
        rows = slice(block * FP8_BLOCK, min((block + 1) * FP8_BLOCK, n_rows))
        amax = np.maximum.reduceat(np.abs(weight[rows]).max(axis=0), starts)
        scale[block] = _usable(amax / np.float32(FP8_MAX))
        scaled = weight[rows] / np.repeat(scale[block], FP8_BLOCK)[:n_columns]
        np.clip(scaled, -FP8_MAX, FP8_MAX, out=scaled)  # a subnormal scale may be rounded down; beyond 448 is NaN
        codes[rows] = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return Weight("fp8", (n_rows, n_columns), codes, scale, "f32", FP8_BLOCK, block_rows=FP8_BLOCK)


def _check(weight: np.ndarray, group_size: int) -> tuple[int, int]:
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise ValueError(f"a matrix to quantise is f32 (N, K), not {weight.dtype} {weight.shape}")
    n_rows, n_columns = weight.shape
    if group_size < 1 or n_columns % group_size:
        raise ValueError(f"groups of {group_size} do not divide {n_columns} columns")
    return n_rows, n_columns


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(1, SLAB_VALUES // shape[1])
    for start in range(0, shape[0], height):
        yield slice(start, min(start + height, shape[0]))


def _amax(groups: np.ndarray) -> np.ndarray:
    """f32 (n, groups) of f32 (n, groups, G): greatest magnitude. Raises ValueError unless all are finite."""
    amax = np.maximum(groups.max(axis=2), -groups.min(axis=2))
    if not np.isfinite(amax).all():
        raise ValueError("a matrix to quantise holds NaN or infinity")
    return amax


def _usable(scale: np.ndarray) -> np.ndarray:
    """`scale` f32 with 1 where it is 0 (all-zero groups) and an error where it is not finite."""
    if not np.isfinite(scale).all():
        raise ValueError("a matrix to quantise holds NaN or infinity")
    return np.where(scale > 0, scale, np.float32(1))


def _bf16_scale(scale: np.ndarray) -> np.ndarray:
    """Bits of bf16(scale), u16, and of 1 where that is 0."""
    rounded = _usable(scale.astype(ml_dtypes.bfloat16).astype(np.float32))
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def _bf16_values(bits: np.ndarray) -> np.ndarray:
    values = bits.astype(np.uint32) << np.uint32(16)
    return values.view(np.float32)
