"""The kernel rms_norm, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/rms_norm.py`."""

from collections.abc import Callable

import numpy as np
import pytest

from . import agreement
from .agreement import every_compiled, every_implementation, every_implementation_but
from .refusals import check_refuses, read_only, wrong_arguments, wrong_floats


@every_implementation("rms_norm")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("rms_norm", function, "x", "out")


@every_implementation("rms_norm")
def test_in_place(function: Callable[..., None]) -> None:
    x = np.random.default_rng(2).standard_normal((3, 100), np.float32)
    expected = x / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + 1e-6)
    function(x, np.ones(100, np.float32), 1e-6, x, n_threads=1)
    np.testing.assert_allclose(x, expected, rtol=2e-6)


@every_implementation_but("rms_norm", "reference")
@wrong_arguments(
    *wrong_floats("x", 2),
    *wrong_floats("weight", 1),
    *wrong_floats("out", 2),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("rms_norm", function, name, change)


@every_compiled("rms_norm")
@pytest.mark.parametrize(
    ("x", "weight", "complaint"),
    [
        (np.zeros((2, 16), "f4")[:, ::2], np.zeros(8, "f4"), "the last 1 packed"),
        (np.zeros((2, 8), "f4"), np.zeros(8, ">f4"), "weight must be float32"),
        (np.zeros(65, "u1")[1:].view("f4").reshape(2, 8), np.zeros(8, "f4"), "x must be float32"),
    ],
    ids=["spaced", "big-endian", "unaligned"],
)
def test_what_vectors_cannot_be_loaded_from_is_refused(
    function: Callable[..., None], x: np.ndarray, weight: np.ndarray, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        function(x, weight, 1e-6, np.empty((2, 8), np.float32), n_threads=1)
