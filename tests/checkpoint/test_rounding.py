"""Quantise functions: error bounds, exact choice of codes, extreme groups, and the int4 search against brute force."""

import ml_dtypes
import numpy as np
import pytest

from bench import reference_rounding
from bench.reference_rounding import group_size_for, plain_weight, quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import dequantize
from deepzig._kernels.weight import Weight
from deepzig.checkpoint.rounding import cast
from deepzig.checkpoint.scale_search import DIVISORS
from deepzig.errors import CheckpointError


def normal(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def stored_scale(weight: Weight) -> np.ndarray:
    """f32 (N, ceil(K / G)) of bf16 bits."""
    assert weight.scale is not None and weight.scale_format == "bf16"
    return weight.scale.view(ml_dtypes.bfloat16).astype(np.float32)


def squared_error(weight: Weight, original: np.ndarray) -> np.ndarray:
    """f64 (N, K / G)."""
    difference = (dequantize(weight).astype(np.float64) - original) ** 2
    return difference.reshape(original.shape[0], -1, weight.group_size).sum(axis=2)


@pytest.mark.parametrize(
    ("n_columns", "group_size"),
    [(7168, 128), (1408, 128), (10944, 64), (64, 64), (96, 32), (1536, 128), (44, 44), (1, 1), (13, 13)],
)
def test_group_size_for(n_columns: int, group_size: int) -> None:
    assert group_size_for(n_columns) == group_size


@pytest.mark.parametrize(("n_columns", "group_size"), [(256, 128), (192, 64), (96, 32), (100, 100), (13, 13)])
def test_int8_is_the_nearest_code_to_a_bf16_scale(n_columns: int, group_size: int) -> None:
    original = normal((9, n_columns))
    weight = quantize_int8(original, group_size)
    groups = original.reshape(9, -1, group_size)
    scale = (np.abs(groups).max(axis=2) / np.float32(127)).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(stored_scale(weight), scale)
    exact = np.clip(np.rint(groups / scale[:, :, None]), -127, 127)
    np.testing.assert_array_equal(dequantize(weight), (exact * scale[:, :, None]).reshape(9, -1))
    # half a step, and where bf16 rounded the scale down, what the clipped code loses
    bound = scale[:, :, None] * (0.5 + 127 / 256)
    assert (np.abs(dequantize(weight).reshape(groups.shape) - groups) <= bound).all()


def test_int8_error_is_that_of_eight_bits() -> None:
    original = normal((64, 1024))
    error = dequantize(quantize_int8(original, 128)) - original
    assert np.sqrt((error**2).mean() / (original**2).mean()) < 0.008


@pytest.mark.parametrize(("n_columns", "group_size"), [(128, 64), (96, 32), (13, 13)])
def test_int4_search_finds_the_best_candidate_of_each_group(n_columns: int, group_size: int) -> None:
    original = normal((11, n_columns))
    weight = quantize_int4(original, group_size)
    groups = original.reshape(11, -1, group_size)
    best = np.full(groups.shape[:2], np.inf)
    for divisor in DIVISORS:
        scale = (np.abs(groups).max(axis=2) / divisor).astype(ml_dtypes.bfloat16).astype(np.float32)[:, :, None]
        rounded = np.clip(np.rint(groups / scale), -8, 7) * scale
        best = np.minimum(best, ((rounded - groups).astype(np.float64) ** 2).sum(axis=2))
    np.testing.assert_allclose(squared_error(weight, original), best, rtol=1e-4)


def test_int4_search_beats_plain_rounding() -> None:
    original = normal((64, 1024))
    searched = squared_error(quantize_int4(original, 64), original).sum()
    groups = original.reshape(64, -1, 64)
    for divisor, gain in ((7, 0.8), (7.5, 0.88), (8, 0.94)):
        scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(divisor)
        plain = ((np.clip(np.rint(groups / scale), -8, 7) * scale - groups) ** 2).sum()
        assert searched < gain * plain


def test_int4_uses_the_whole_range() -> None:
    weight = quantize_int4(np.arange(-32, 32, dtype=np.float32)[None], 64)
    nibbles = np.stack([weight.codes & 15, weight.codes >> 4]).ravel()
    assert nibbles.min() == 0 and nibbles.max() == 15


@pytest.mark.parametrize("power", [-110, -70, 70, 125])
def test_int4_search_does_not_depend_on_the_size_of_weights(power: int) -> None:
    original = normal((5, 96), seed=2)
    weight, scaled = quantize_int4(original, 32), quantize_int4(np.ldexp(original, power), 32)
    np.testing.assert_array_equal(scaled.codes, weight.codes)
    np.testing.assert_array_equal(stored_scale(scaled), np.ldexp(stored_scale(weight), power))


def test_int4_of_subnormal_weights_keeps_zeros_and_signs() -> None:
    original = normal((5, 96)) * np.float32(1e-37)
    original[:, ::3] = 0
    decoded = dequantize(quantize_int4(original, 32))
    np.testing.assert_array_equal(decoded[:, ::3], 0)
    np.testing.assert_allclose(decoded, original, rtol=0, atol=np.abs(original).max() / 8)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_extreme_groups(quantize: object) -> None:
    original = np.zeros((6, 32), dtype=np.float32)
    original[1] = 1e-45  # subnormal: its scale would round to zero
    original[2] = 3e38
    original[3, 5] = -1.0
    original[4] = 1.17549435e-38
    original[5] = -0.0
    weight = (quantize_int8 if quantize is quantize_int8 else quantize_int4)(original, 32)
    decoded = dequantize(weight)
    assert (stored_scale(weight) > 0).all()
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(decoded[[0, 5]], 0)
    np.testing.assert_allclose(decoded[2:4], original[2:4], rtol=0.08)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_input_is_refused(value: float) -> None:
    original = normal((4, 128))
    original[2, 77] = value
    for quantize in (lambda w: quantize_int8(w, 64), lambda w: quantize_int4(w, 64), quantize_fp8):
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize(original)


def test_input_that_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide 100"):
        quantize_int8(normal((2, 100)), 64)
    with pytest.raises(ValueError, match="f32"):
        quantize_int4(normal((2, 64)).astype(np.float64), 64)


@pytest.mark.parametrize("shape", [(128, 128), (130, 300), (1, 1), (256, 100)])
def test_fp8_blocks(shape: tuple[int, int]) -> None:
    original = normal(shape)
    weight = quantize_fp8(original)
    assert weight.scale is not None
    for i in range(weight.scale.shape[0]):
        for j in range(weight.scale.shape[1]):
            rows, columns = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            block = original[rows, columns]
            scale = np.abs(block).max() / np.float32(448)
            assert weight.scale[i, j] == scale
            expected = (block / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
            np.testing.assert_array_equal(weight.codes[rows, columns], expected)
    decoded = dequantize(weight)
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, original, rtol=1 / 16, atol=float(weight.scale.max()) * 2**-10)


def test_fp8_of_zeros() -> None:
    np.testing.assert_array_equal(dequantize(quantize_fp8(np.zeros((3, 200), np.float32))), 0)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_cast_rounds_to_nearest_even(name: str, dtype: type) -> None:
    original = np.array(
        [[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -65504.0, 1e-30, np.inf, np.nan, 0.1]], dtype=np.float32
    )
    np.testing.assert_array_equal(dequantize(plain_weight(original, name)), original.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(("name", "value", "message"), [("f16", 1e5, r"65504.*bf16"), ("bf16", -3.4e38, r"3\.39e38")])
def test_cast_refuses_overflow_but_takes_infinity(name: str, value: float, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        cast(np.array([[value]], dtype=np.float32), name)
    assert np.isinf(dequantize(plain_weight(np.array([[np.inf]], dtype=np.float32), name))).all()


@pytest.mark.parametrize("slab", [1, 300, 1 << 22])
def test_slabs_do_not_change_the_result(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = normal((130, 256))
    makers = (lambda: quantize_int8(original, 64), lambda: quantize_int4(original, 64))
    before = [dequantize(make()) for make in makers]
    monkeypatch.setattr(reference_rounding, "SLAB_VALUES", slab)
    for make, expected in zip(makers, before, strict=True):
        np.testing.assert_array_equal(dequantize(make()), expected)
