"""The compiled rounding gives the bits of the NumPy reference."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reference_rounding import quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import dequantize
from deepzig._kernels.weight import Weight
from deepzig.checkpoint.rounding_numba import first_non_finite, round_fp8, round_int4, round_int8

SHAPES = [((130, 256), 128), ((5, 13), 13), ((300, 96), 32), ((257, 300), 300), ((1, 64), 64), ((3, 7), 1)]
SIZES = [0.02, 1.0, 1e-40, 1e-44, 1e36]  # of the values; subnormal and near the greatest


def compiled(values: np.ndarray, kind: str, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales as `quantize_*` gives them."""
    n_rows, n_columns = values.shape
    if kind == "fp8":
        codes = np.zeros(values.shape, np.uint8)
        scale: np.ndarray = np.empty((-(-n_rows // 128), -(-n_columns // 128)), np.float32)
        round_fp8(values, 128, codes, scale)
        return codes, scale
    scale = np.empty((n_rows, n_columns // group_size), np.uint16)
    if kind == "int8":
        codes = np.zeros((n_rows, -(-n_columns // 4) * 4), np.uint8)
        round_int8(values, group_size, codes, scale)
    else:
        codes = np.zeros((n_rows, -(-n_columns // 8) * 4), np.uint8)
        round_int4(values, group_size, np.ones(n_columns, np.float32), codes, scale)
    return codes, scale


REFERENCE: dict[str, Callable[[np.ndarray, int], Weight]] = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "fp8": lambda values, group_size: quantize_fp8(values),
}


def check(values: np.ndarray, kind: str, group_size: int) -> None:
    want = REFERENCE[kind](values, group_size)
    codes, scale = compiled(values, kind, group_size)
    np.testing.assert_array_equal(scale, want.scale)
    np.testing.assert_array_equal(codes, want.codes)


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
def test_bits_are_those_of_the_reference(shape: tuple[int, int], group_size: int, size: float, kind: str) -> None:
    values = (np.random.default_rng(1).standard_normal(shape) * size).astype(np.float32)
    values[0, : shape[1] // 2] = 0
    values[-1] = -0.0
    check(values, kind, group_size)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=64, max_size=64), st.data())
def test_bits_of_any_values(row: list[float], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(REFERENCE)))
    check(np.array([row], np.float32).reshape(2, 32), kind, 32)


def test_fp8_codes_and_the_halves_between_them() -> None:
    """Halves go to the even neighbour, as ml_dtypes rounds."""
    exact = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)  # all but NaN
    halves = np.append((exact[1:] + exact[:-1]) / 2, exact[-1])
    values = np.stack([exact, -exact, halves, -halves])
    codes, scale = compiled(values, "fp8", 0)
    assert scale == 1
    np.testing.assert_array_equal(codes[0], np.arange(127))
    np.testing.assert_array_equal(codes[1], np.arange(128, 255))
    check(values, "fp8", 0)


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    values = np.random.default_rng(3).standard_normal((64, 128)).astype(np.float32)
    counts = np.where(np.arange(128) % 64 < 8, np.float32(100), np.float32(0.01))

    def error(weight: Weight) -> float:
        return float(((dequantize(weight) - values) ** 2)[:, counts > 1].sum())

    weighted = quantize_int4(values, 64, counts)
    assert error(weighted) < 0.8 * error(quantize_int4(values, 64))
    codes, scale = np.zeros((64, 64), np.uint8), np.empty((64, 2), np.uint16)
    round_int4(values, 64, counts, codes, scale)
    np.testing.assert_array_equal(codes, weighted.codes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_non_finite_value_is_found(value: float) -> None:
    values = np.zeros((50, 70), np.float32)
    assert first_non_finite(values) == -1
    values[49, 69] = value
    assert first_non_finite(values) == values.size - 1
    values[3, 5] = value
    assert first_non_finite(values) == 3 * 70 + 5
    values[:] = np.finfo(np.float32).max
    assert first_non_finite(values) == -1
