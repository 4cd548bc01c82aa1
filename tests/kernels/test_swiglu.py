"""The kernel swiglu, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/swiglu.py`."""

from collections.abc import Callable

import numpy as np

from . import agreement
from .agreement import every_implementation, every_implementation_but
from .refusals import check_refuses, read_only, wrong_arguments, wrong_floats


@every_implementation("swiglu")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("swiglu", function, "gate", "up", "out")


@every_implementation("swiglu")
def test_in_place(function: Callable[..., None]) -> None:
    gate, up = np.random.default_rng(6).standard_normal((2, 5, 100), np.float32)
    expected = gate / (1 + np.exp(-gate)) * up
    function(gate, up, gate, n_threads=1)
    np.testing.assert_allclose(gate, expected, rtol=2e-6)


@every_implementation("swiglu")
def test_large_gates_neither_overflow_nor_vanish(function: Callable[..., None]) -> None:
    gate = np.array([[-1e30, -104, 104, 1e30, np.nan]], np.float32)
    out = np.empty_like(gate)
    function(gate, np.ones_like(gate), out, n_threads=1)
    np.testing.assert_array_equal(out[0, 2:4], gate[0, 2:4])
    assert abs(out[0, :2]).max() < 1e-40
    assert np.isnan(out[0, 4])


@every_implementation_but("swiglu", "reference")
@wrong_arguments(
    *wrong_floats("gate", 2),
    *wrong_floats("up", 2),
    *wrong_floats("out", 2),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("swiglu", function, name, change)
