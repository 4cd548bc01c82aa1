"""Rounding to int8, int4 and fp8, compiled, for slabs of rows.

Called by `quantize`, from several threads at once; calls `scale_search`. Knows arrays only. Values must be finite;
`first_non_finite` checks that. The bits are those of the reference, `bench/reference_rounding.py`. Magnitudes are
compared as integers, by their bits: such a loop becomes vector instructions, since it needs no rule for NaN.
"""

import numpy as np

from deepzig._kernels._numba_jit import jit
from deepzig.checkpoint.scale_search import bf16_bits, search_int4

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_jit = jit(error_model="numpy")


@_jit
def _greatest(bits: np.ndarray) -> np.uint32:
    """The greatest magnitude among the bits u32 (n,) of floats, as bits."""
    found = np.uint32(0)
    for k in range(len(bits)):
        found = max(found, bits[k] & _MAGNITUDE)
    return found


@_jit
def first_non_finite(values: np.ndarray) -> int:
    """Flat index of the first NaN or infinity of f32 (n, K), C-contiguous; -1 if all are finite."""
    bits = values.view(np.uint32)
    for row in range(bits.shape[0]):
        if _greatest(bits[row]) >= _INFINITY:
            for k in range(bits.shape[1]):
                if bits[row, k] & _MAGNITUDE >= _INFINITY:
                    return row * bits.shape[1] + k
    return -1


@_jit
def group_magnitudes(values: np.ndarray, group_size: int, amax: np.ndarray) -> None:
    """amax f32 (n, K / G): greatest magnitude of each group of `values` f32 (n, K), all finite."""
    bits, greatest = values.view(np.uint32), amax.view(np.uint32)
    for row in range(bits.shape[0]):
        for group in range(amax.shape[1]):
            greatest[row, group] = _greatest(bits[row, group * group_size : (group + 1) * group_size])


@_jit
def _round_int8(values: np.ndarray, group_size: int, amax: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> None:
    stored = np.empty(1, np.float32)
    word = stored.view(np.uint32)
    for row in range(values.shape[0]):
        for group in range(scale.shape[1]):
            stored[0] = amax[row, group] / np.float32(127)
            word[0] = np.uint32(bf16_bits(word[0])) << np.uint32(16)
            if word[0] == 0:
                stored[0] = 1
            scale[row, group] = word[0] >> np.uint32(16)
            factor = stored[0]
            part = values[row, group * group_size : (group + 1) * group_size]
            out = codes[row, group * group_size : (group + 1) * group_size]
            for k in range(group_size):
                code = np.rint(min(max(part[k] / factor, np.float32(-127)), np.float32(127)))
                out[k] = np.uint8(np.int32(code) + np.int32(128))


def round_int8(values: np.ndarray, group_size: int, codes: np.ndarray, scale: np.ndarray) -> None:
    """int8 of f32 (n, K): writes codes u8 (n, >= K), zeros before, and scale u16 (n, K / G), bits of bf16.

    Symmetric, scale = max |w| / 127, code = round(w / scale) + 128; scale and codes as pack-quantized stores them.
    """
    amax = np.empty(scale.shape, np.float32)
    group_magnitudes(values, group_size, amax)
    _round_int8(values, group_size, amax, codes, scale)


@_jit
def _pack_nibbles(signed: np.ndarray, codes: np.ndarray) -> None:
    nibbles = signed.view(np.uint8)  # plus 8, which in four bits turns the highest one round
    n_columns = signed.shape[1]
    for row in range(signed.shape[0]):
        for pair in range(n_columns // 2):
            low, high = nibbles[row, 2 * pair] & np.uint8(15), nibbles[row, 2 * pair + 1] << np.uint8(4)
            codes[row, pair] = (low | high) ^ np.uint8(0x88)
        if n_columns % 2:
            codes[row, n_columns // 2] = (nibbles[row, n_columns - 1] & np.uint8(15)) ^ np.uint8(8)


def round_int4(
    values: np.ndarray, group_size: int, importance: np.ndarray, codes: np.ndarray, scale: np.ndarray
) -> None:
    """int4 of f32 (n, K): writes codes u8 (n, >= K / 2), zeros before, and scale u16 (n, K / G), bits of bf16.

    Symmetric, code in [-8, 7] plus 8, two a byte, the scale of each group searched for the least squared error.
    importance f32 (K,): weight of each column's squared error.
    """
    groups = values.reshape(len(values), scale.shape[1], group_size)
    amax = np.empty(scale.shape, np.float32)
    group_magnitudes(values, group_size, amax)
    signed = np.empty(groups.shape, np.int8)
    search_int4(groups, amax, importance.reshape(groups.shape[1:]), scale, signed)
    _pack_nibbles(signed.reshape(values.shape), codes)


@_jit
def _fp8_code(value: np.float32, bits: np.uint32) -> np.uint8:
    """float8_e4m3fn nearest to f32 `value` of these bits, halves to even; beyond 448 the greatest."""
    magnitude = min(bits & _MAGNITUDE, np.uint32(0x43E00000))  # 448
    # three bits of mantissa are left, and the exponent's bias goes from 127 to 7; below 2^-6 lie multiples of 2^-9
    odd = (magnitude >> np.uint32(20)) & np.uint32(1)
    normal = ((magnitude + np.uint32(0x7FFFF) + odd) >> np.uint32(20)) - np.uint32(120 << 3)
    subnormal = np.uint32(np.int32(np.rint(min(abs(value), np.float32(1)) * np.float32(512))))
    code = subnormal if magnitude < np.uint32(0x3C800000) else normal
    return np.uint8(code | ((bits >> np.uint32(24)) & np.uint32(0x80)))


@_jit
def round_fp8(values: np.ndarray, block: int, codes: np.ndarray, scale: np.ndarray) -> None:
    """float8 e4m3 of f32 (n, K): writes codes u8 (n, K), scale f32 (ceil(n / block), ceil(K / block)).

    In blocks as DeepSeek's releases: scale = max |w| / 448.
    """
    bits = values.view(np.uint32)
    n_rows, n_columns = values.shape
    factor = np.empty(1, np.float32)
    scaled = np.empty(block, np.float32)
    word, scaled_bits = factor.view(np.uint32), scaled.view(np.uint32)
    for block_row in range(scale.shape[0]):
        rows = range(block_row * block, min((block_row + 1) * block, n_rows))
        for block_column in range(scale.shape[1]):
            first, end = block_column * block, min((block_column + 1) * block, n_columns)
            word[0] = 0
            for row in rows:
                word[0] = max(word[0], _greatest(bits[row, first:end]))
            factor[0] = factor[0] / np.float32(448)
            if word[0] == 0:
                factor[0] = 1
            scale[block_row, block_column] = factor[0]
            for row in rows:
                part, out = values[row, first:end], codes[row, first:end]
                for k in range(end - first):
                    scaled[k] = part[k] / factor[0]
                for k in range(end - first):
                    out[k] = _fp8_code(scaled[k], scaled_bits[k])
