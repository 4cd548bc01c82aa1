"""The kernel experts, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/experts.py`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepzig._kernels import REGISTRY
from deepzig._kernels.experts import scratch_size
from deepzig._kernels.weight import ExpertWeights
from deepzig._kernels.weight_cases import random_weights

from .agreement import every_implementation, every_implementation_but
from .products import mapped_weights
from .refusals import (
    as_float64,
    as_int64,
    check_refuses,
    first_half,
    one_more,
    read_only,
    wrong_arguments,
    wrong_floats,
)


def layers(rng: np.random.Generator, n_experts: int, hidden: int, intermediate: int) -> list[ExpertWeights]:
    """Random experts, one layer for each way to store weights."""
    shapes = (intermediate, hidden), (intermediate, hidden), (hidden, intermediate)
    stored = [[list(random_weights(rng, shape)) for _ in range(n_experts)] for shape in shapes]
    return [
        ExpertWeights(*([expert[way] for expert in matrix] for matrix in stored)) for way in range(len(stored[0][0]))
    ]


def run(
    function: Callable[..., None], x: np.ndarray, weights: ExpertWeights, *routing: np.ndarray, n_threads: int = 2
) -> np.ndarray:
    """f32 (T, D); routing: topk_idx, topk_weight."""
    scratch = np.full(scratch_size(*routing[0].shape, x.shape[1], weights.intermediate_size), np.nan, np.float32)
    out = np.empty_like(x)
    function(x, *routing, weights, scratch, out, n_threads=n_threads)
    return out


@every_implementation_but("experts", "reference", "blas")  # they sum in the order of NumPy's BLAS
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 48), (100, 36), (1100, 40)])
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None], hidden: int, intermediate: int) -> None:
    rng = np.random.default_rng(11)
    x = rng.standard_normal((37, hidden), np.float32)
    topk_idx = np.stack([rng.permutation(5)[:3] for _ in range(37)]).astype(np.int32)
    topk_weight = rng.random((37, 3), np.float32)
    for weights in layers(rng, 5, hidden, intermediate):
        together = run(function, x, weights, topk_idx, topk_weight)
        for t in range(0, 37, 5):
            row = slice(t, t + 1)
            alone = run(function, x[row], weights, topk_idx[row], topk_weight[row], n_threads=1)
            np.testing.assert_array_equal(together[row], alone, err_msg=weights.gate_proj[0].format)


@every_implementation("experts")
@pytest.mark.parametrize("n_tokens", [1, 6, 65])
def test_one_expert_gets_all_tokens(function: Callable[..., None], n_tokens: int) -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((n_tokens, 96), np.float32) * np.float32(0.1)
    topk_weight = rng.random((n_tokens, 1), np.float32)
    for weights in layers(rng, 4, 96, 80):
        for expert in (0, 2, 3):
            topk_idx = np.full((n_tokens, 1), expert, np.int32)
            out = run(function, x, weights, topk_idx, topk_weight)
            expected = run(REGISTRY["experts"].reference, x, weights, topk_idx, topk_weight)
            np.testing.assert_allclose(out, expected, **REGISTRY["experts"].tolerance)


@every_implementation("experts")
def test_the_sum_runs_in_order_of_slots(function: Callable[..., None]) -> None:
    """Weights of 2^30, 1 and -2^30: the 1 is lost where it is added while the sum is large."""
    (ones,) = [weight for weight in random_weights(np.random.default_rng(0), (16, 16)) if weight.format == "f32"]
    ones.codes[:] = 1
    weights = ExpertWeights([ones] * 3, [ones] * 3, [ones] * 3)
    x = np.full((1, 16), 100, np.float32)
    value = np.float32(1600 * 1600 * 16)
    factors = np.array([2.0**30, 1, -(2.0**30)], np.float32)
    for order, expected in (([0, 1, 2], 0), ([0, 2, 1], value), ([2, 1, 0], 0), ([1, 0, 2], 0)):
        out = run(function, x, weights, np.array([order], np.int32), factors[None, order])
        np.testing.assert_array_equal(out, np.full_like(out, expected), err_msg=str(order))


@every_implementation("experts")
def test_no_tokens(function: Callable[..., None]) -> None:
    (weights, *_) = layers(np.random.default_rng(13), 2, 32, 16)
    empty = np.empty((0, 2), np.int32), np.empty((0, 2), np.float32)
    assert run(function, np.empty((0, 32), np.float32), weights, *empty).shape == (0, 32)


@every_implementation("experts")
def test_weights_in_read_only_memory_maps(function: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    x = rng.standard_normal((3, 64), np.float32) * np.float32(0.1)
    topk_idx, topk_weight = np.zeros((3, 1), np.int32), np.ones((3, 1), np.float32)
    for proj in zip(*(mapped_weights(rng, shape, tmp_path) for shape in ((32, 64), (32, 64), (64, 32))), strict=True):
        weights = ExpertWeights(*([weight] for weight in proj))
        expected = run(REGISTRY["experts"].reference, x, weights, topk_idx, topk_weight)
        out = run(function, x, weights, topk_idx, topk_weight)
        np.testing.assert_allclose(out, expected, **REGISTRY["experts"].tolerance)


def beyond_the_last(topk_idx: np.ndarray) -> np.ndarray:
    return topk_idx + 5


def negative(topk_idx: np.ndarray) -> np.ndarray:
    return ~topk_idx


@every_implementation_but("experts", "reference")
@wrong_arguments(
    *wrong_floats("x", 2),
    ("topk_idx", as_int64),
    ("topk_idx", one_more(0)),
    ("topk_idx", one_more(1)),
    ("topk_idx", beyond_the_last),
    ("topk_idx", negative),
    ("topk_weight", as_float64),
    ("topk_weight", one_more(1)),
    ("scratch", as_float64),
    ("scratch", first_half),
    ("out", as_float64),
    ("out", one_more(0)),
    ("out", one_more(1)),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("experts", function, name, change)
