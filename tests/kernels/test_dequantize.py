"""The kernel dequantize, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/dequantize.py`."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from deepzig._kernels.weight import Weight

from . import agreement
from .agreement import every_implementation, every_implementation_but
from .refusals import (
    as_int64,
    check_refuses,
    one_axis_more,
    one_more,
    read_only,
    wrong_arguments,
    wrong_floats,
)


@every_implementation("dequantize")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("dequantize", function, "rows", "out")


@every_implementation("dequantize")
@pytest.mark.parametrize("weight_format", ["fp8", "f16", "bf16"])
def test_every_code_as_ml_dtypes_decodes_it(function: Callable[..., None], weight_format: str) -> None:
    """Subnormals, infinities, both zeros and NaN too; bit for bit, but for the payload of NaN."""
    n_codes, dtype = (256, np.uint8) if weight_format == "fp8" else (65536, np.uint16)
    codes = np.arange(n_codes, dtype=dtype)[None]
    scaled = {"scale": np.ones((1, 1), np.float32), "scale_format": "f32", "group_size": n_codes}
    weight = Weight(weight_format, (1, n_codes), codes, **(scaled if weight_format == "fp8" else {}))
    out = np.empty((1, n_codes), np.float32)
    function(weight, np.zeros(1, np.int32), out, n_threads=2)
    known = {"fp8": ml_dtypes.float8_e4m3fn, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[weight_format]
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = codes.view(known).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(out[numbers]), np.signbit(expected[numbers]))


@every_implementation_but("dequantize", "reference")
@pytest.mark.parametrize("row", [-1, 4])
def test_rows_outside_are_refused(function: Callable[..., None], row: int) -> None:
    weight = Weight("f32", (4, 8), np.zeros((4, 8), np.float32))
    with pytest.raises(ValueError, match=f"rows names row {row} of 4"):
        function(weight, np.array([0, row, 3], np.int32), np.empty((3, 8), np.float32), n_threads=1)


@every_implementation_but("dequantize", "reference")
@wrong_arguments(
    ("rows", as_int64),
    ("rows", one_axis_more),
    ("rows", one_more(0)),
    *wrong_floats("out", 2),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("dequantize", function, name, change)
