"""The kernel rms_norm, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/rms_norm.py`."""

from collections.abc import Callable

import numpy as np
import pytest

from . import agreement
from .agreement import every_compiled, every_implementation


@every_implementation("rms_norm")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("rms_norm", function, "x", "out")


@every_implementation("rms_norm")
def test_in_place(function: Callable[..., None]) -> None:
    x = np.random.default_rng(2).standard_normal((3, 100), np.float32)
    expected = x / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + 1e-6)
    function(x, np.ones(100, np.float32), 1e-6, x, n_threads=1)
    np.testing.assert_allclose(x, expected, rtol=2e-6)


@every_compiled("rms_norm")
@pytest.mark.parametrize(
    ("x", "weight", "out", "complaint"),
    [
        (np.zeros((2, 8)), np.zeros(8, "f4"), np.zeros((2, 8), "f4"), "x must be float32"),
        (np.zeros(8, "f4"), np.zeros(8, "f4"), np.zeros((2, 8), "f4"), "x must be float32 with 2 axes"),
        (np.zeros((2, 16), "f4")[:, ::2], np.zeros(8, "f4"), np.zeros((2, 8), "f4"), "the last 1 packed"),
        (np.zeros((2, 8), "f4"), np.zeros(7, "f4"), np.zeros((2, 8), "f4"), "weight has shape"),
        (np.zeros((2, 8), "f4"), np.zeros(8, "f4"), np.zeros((3, 8), "f4"), "out has shape"),
        (np.zeros((2, 8), "f4"), np.zeros(8, ">f4"), np.zeros((2, 8), "f4"), "weight must be float32"),
        (np.zeros((2, 8), "f4"), np.zeros(8, "f4"), np.broadcast_to(np.float32(0), (2, 8)), "out must be"),
    ],
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], x: np.ndarray, weight: np.ndarray, out: np.ndarray, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        function(x, weight, 1e-6, out, n_threads=1)


@every_compiled("rms_norm")
def test_unaligned_and_read_only_arrays_are_refused(function: Callable[..., None]) -> None:
    weight, out = np.ones(8, np.float32), np.empty((1, 8), np.float32)
    unaligned = np.zeros(33, np.uint8)[1:].view(np.float32).reshape(1, 8)
    with pytest.raises(ValueError, match="x must be float32"):
        function(unaligned, weight, 1e-6, out, n_threads=1)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        function(np.zeros((1, 8), np.float32), weight, 1e-6, out, n_threads=1)
