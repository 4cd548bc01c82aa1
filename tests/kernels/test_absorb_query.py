"""The kernel absorb_query, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/absorb_query.py`."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

from .agreement import every_implementation, every_implementation_but
from .products import decoded
from .refusals import as_float64, check_refuses, one_more, read_only, wrong_arguments, wrong_floats


@every_implementation_but("absorb_query", "reference")
@pytest.mark.parametrize(("n_heads", "nope", "value_dim", "rank"), [(4, 32, 48, 64), (3, 45, 7, 100)])
def test_a_row_does_not_depend_on_its_neighbours(
    function: Callable[..., None], n_heads: int, nope: int, value_dim: int, rank: int
) -> None:
    rng = np.random.default_rng(21)
    q_nope = rng.standard_normal((29, n_heads, nope), np.float32)
    for weight in random_weights(rng, (n_heads * (nope + value_dim), rank)):
        together, alone = np.empty((2, 29, n_heads, rank), np.float32)
        function(q_nope, weight, together, n_threads=2)
        for t in range(29):
            function(q_nope[t : t + 1], weight, alone[t : t + 1], n_threads=1)
        np.testing.assert_array_equal(together, alone, err_msg=weight.format)


@every_implementation("absorb_query")
@pytest.mark.parametrize("n_rows", [1, 2, 7, 40])
def test_many_rows_against_exact_sums(function: Callable[..., None], n_rows: int) -> None:
    rng = np.random.default_rng(22)
    q_nope = rng.standard_normal((n_rows, 2, 33), np.float32)
    for weight in random_weights(rng, (2 * 39, 96)):
        out = np.empty((n_rows, 2, 96), np.float32)
        function(q_nope, weight, out, n_threads=2)
        exact = np.einsum("thn,hnr->thr", q_nope.astype(np.float64), decoded(weight).reshape(2, 39, 96)[:, :33])
        np.testing.assert_allclose(out, exact, rtol=0, atol=2e-6 * abs(exact).max(), err_msg=weight.format)


@every_implementation("absorb_query")
@pytest.mark.parametrize("n_rows", [1, 2, 5, 7])
def test_every_code_of_fp8(function: Callable[..., None], n_rows: int) -> None:
    """One row of all codes, NaN among them, times one number for each row of queries."""
    codes = np.stack([np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)])
    value = codes[0].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    weight = Weight("fp8", codes.shape, codes, np.ones((1, 2), np.float32), "f32", 128, block_rows=128)
    q_nope = np.exp2(np.arange(n_rows, dtype=np.float32) * 11 - 30)[:, None, None]
    out = np.empty((n_rows, 1, 256), np.float32)
    function(q_nope, weight, out, n_threads=1)
    np.testing.assert_array_equal(out, q_nope * value)


@every_implementation_but("absorb_query", "reference")
@wrong_arguments(
    *wrong_floats("q_nope", 2),
    ("out", as_float64),
    ("out", one_more(0)),
    ("out", one_more(1)),
    ("out", one_more(2)),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("absorb_query", function, name, change)


@every_implementation_but("absorb_query", "reference")
def test_heads_that_do_not_fit_the_weight_are_refused(function: Callable[..., None]) -> None:
    weight = next(random_weights(np.random.default_rng(23), (24, 16)))
    for n_heads, nope in ((2, 13), (5, 3), (0, 3)):
        query, out = np.zeros((1, n_heads, nope), np.float32), np.zeros((1, n_heads, 16), np.float32)
        with pytest.raises(ValueError, match="does not fit"):
            function(query, weight, out, n_threads=1)
