"""The kernel absorb_value, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/absorb_value.py`."""

from collections.abc import Callable

import numpy as np
import pytest

from deepzig._kernels.weight_cases import random_weights

from .agreement import every_implementation, every_implementation_but
from .products import decoded
from .refusals import as_float64, check_refuses, one_more, read_only, wrong_arguments, wrong_floats


@every_implementation_but("absorb_value", "reference")
@pytest.mark.parametrize(("n_heads", "nope", "value_dim", "rank"), [(4, 32, 48, 64), (3, 7, 45, 100)])
def test_a_row_does_not_depend_on_its_neighbours(
    function: Callable[..., None], n_heads: int, nope: int, value_dim: int, rank: int
) -> None:
    rng = np.random.default_rng(31)
    o_latent = rng.standard_normal((29, n_heads, rank), np.float32)
    for weight in random_weights(rng, (n_heads * (nope + value_dim), rank)):
        together, alone = np.empty((2, 29, n_heads, value_dim), np.float32)
        function(o_latent, weight, together, n_threads=2)
        for t in range(29):
            function(o_latent[t : t + 1], weight, alone[t : t + 1], n_threads=1)
        np.testing.assert_array_equal(together, alone, err_msg=weight.format)


@every_implementation("absorb_value")
@pytest.mark.parametrize("n_rows", [1, 2, 7, 40])
def test_many_rows_against_exact_sums(function: Callable[..., None], n_rows: int) -> None:
    rng = np.random.default_rng(32)
    o_latent = rng.standard_normal((n_rows, 2, 96), np.float32)
    for weight in random_weights(rng, (2 * 39, 96)):
        out = np.empty((n_rows, 2, 35), np.float32)
        function(o_latent, weight, out, n_threads=2)
        exact = np.einsum("thr,hvr->thv", o_latent.astype(np.float64), decoded(weight).reshape(2, 39, 96)[:, 4:])
        np.testing.assert_allclose(out, exact, rtol=0, atol=2e-6 * abs(exact).max(), err_msg=weight.format)


@every_implementation_but("absorb_value", "reference")
@wrong_arguments(
    *wrong_floats("o_latent", 3),
    ("out", as_float64),
    ("out", one_more(0)),
    ("out", one_more(1)),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("absorb_value", function, name, change)


@every_implementation_but("absorb_value", "reference")
def test_heads_that_do_not_fit_the_weight_are_refused(function: Callable[..., None]) -> None:
    weight = next(random_weights(np.random.default_rng(33), (24, 16)))
    for n_heads, value_dim in ((2, 13), (5, 3), (0, 3)):
        o_latent, out = np.zeros((1, n_heads, 16), np.float32), np.zeros((1, n_heads, value_dim), np.float32)
        with pytest.raises(ValueError, match="does not fit"):
            function(o_latent, weight, out, n_threads=1)
