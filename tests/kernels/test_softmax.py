"""The kernel softmax, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/softmax.py`."""

from collections.abc import Callable

import numpy as np

from . import agreement
from .agreement import every_compiled, every_implementation, every_implementation_but
from .refusals import check_refuses, read_only, wrong_arguments, wrong_floats


@every_implementation("softmax")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("softmax", function, "x", "out")


@every_implementation("softmax")
def test_rows_that_see_nothing_are_zero_and_broken_rows_are_nan(function: Callable[..., None]) -> None:
    x = np.full((3, 21), -np.inf, np.float32)
    x[1, 20], x[2, 4] = np.nan, np.inf
    out = np.empty_like(x)
    function(x, out, n_threads=1)
    assert (out[0] == 0).all()
    assert np.isnan(out[1, 20])
    assert np.isnan(out[2, 4])


@every_compiled("softmax")
def test_exp_is_within_two_ulp(function: Callable[..., None]) -> None:
    """Two visible entries, 0 and x: their ratio is exp(x), with the rounding of two products more."""
    x = np.full((100_000, 33), -np.inf, np.float32)
    x[:, 0] = 0
    x[:, 5] = np.linspace(-87, 0, len(x))
    out = np.empty_like(x)
    function(x, out, n_threads=2)
    ratio = out[:, 5].astype(np.float64) / out[:, 0]
    error = np.abs(ratio / np.exp(x[:, 5], dtype=np.float64) - 1)
    assert error.max() < 3 * 2.0**-23
    tail = np.empty((len(x), 6), np.float32)
    function(x[:, :6], tail, n_threads=2)
    np.testing.assert_allclose(tail, out[:, :6], rtol=2.0**-23)


@every_implementation_but("softmax", "reference")
@wrong_arguments(
    *wrong_floats("x", 2),
    *wrong_floats("out", 2),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("softmax", function, name, change)
