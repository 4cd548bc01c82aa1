"""The kernel rope, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/rope.py`."""

from collections.abc import Callable

import numpy as np
import pytest

from . import agreement
from .agreement import every_implementation, every_implementation_but
from .refusals import check_refuses, one_more, read_only, wrong_arguments, wrong_floats


@every_implementation("rope")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("rope", function, "x", "cos", "sin")


@every_implementation("rope")
@pytest.mark.parametrize("interleave", [True, False])
def test_it_is_a_rotation_of_complex_pairs(function: Callable[..., None], interleave: bool) -> None:
    """As in DeepSeek's own code: a pair is a complex number, times exp(i angle)."""
    rng = np.random.default_rng(3)
    x, angle = rng.standard_normal((5, 3, 64), np.float32), rng.uniform(-9, 9, (5, 32)).astype(np.float32)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else (x[..., :32], x[..., 32:])
    turned = (first + 1j * second) * np.exp(1j * angle)[:, None]
    function(x, np.cos(angle), np.sin(angle), interleave, n_threads=2)
    np.testing.assert_allclose(first, turned.real, atol=2e-6)
    np.testing.assert_allclose(second, turned.imag, atol=2e-6)


@every_implementation_but("rope", "reference")
def test_odd_sizes_are_refused(function: Callable[..., None]) -> None:
    cos = np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"^x "):
        function(np.zeros((1, 1, 7), np.float32), cos, cos, True, n_threads=1)


@every_implementation_but("rope", "reference")
@wrong_arguments(
    *wrong_floats("x", 1),
    ("x", one_more(2)),
    ("x", read_only),
    *wrong_floats("cos", 2),
    *wrong_floats("sin", 2),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("rope", function, name, change)
