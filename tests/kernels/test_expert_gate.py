"""The kernel expert_gate, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/expert_gate.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

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


@every_implementation("expert_gate")
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None]) -> None:
    agreement.check_rows_are_independent("expert_gate", function, "logits", "topk_idx", "topk_weight")


def route(
    function: Callable[..., None], logits: np.ndarray, bias: np.ndarray | None, top_k: int, *settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(topk_idx, topk_weight) i32, f32 (T, top_k)."""
    outputs = np.empty((len(logits), top_k), np.int32), np.empty((len(logits), top_k), np.float32)
    function(logits, bias, top_k, *settings, *outputs, n_threads=2)
    return outputs


def by_index(topk_idx: np.ndarray, topk_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(topk_idx, axis=1)
    return np.take_along_axis(topk_idx, order, 1), np.take_along_axis(topk_weight, order, 1)


@every_implementation("expert_gate")
def test_groups_that_are_not_asked_for_do_not_matter(function: Callable[..., None]) -> None:
    settings = ("softmax", "greedy", False, 1.0)
    expected = route(function, LOGITS, None, 3, 4, 2, *settings)
    for chosen, wanted in zip(route(function, LOGITS, None, 3, -4, 2, *settings), expected, strict=True):
        np.testing.assert_array_equal(chosen, wanted)


LOGITS = np.sin(np.arange(24, dtype=np.float32) * 1.7).reshape(2, 12) * 2


@every_implementation("expert_gate")
def test_v3_routing_as_in_hf(function: Callable[..., None]) -> None:
    """Expected values: transformers 5.23, DeepseekV3TopkRouter, 12 experts in 4 groups."""
    bias = (np.cos(np.arange(12, dtype=np.float32)) - 1).astype(np.float32)
    topk_idx, topk_weight = by_index(*route(function, LOGITS, bias, 3, 4, 2, "sigmoid", "noaux_tc", True, 2.5))
    np.testing.assert_array_equal(topk_idx, [[0, 1, 6], [0, 6, 7]])
    expected = [[0.79269886, 1.39362109, 0.31368000], [1.16246367, 0.24941145, 1.08812499]]
    np.testing.assert_allclose(topk_weight, expected, rtol=2e-6)


@every_implementation("expert_gate")
def test_v2_routing_as_in_hf(function: Callable[..., None]) -> None:
    """Expected values: transformers 5.23, DeepseekV2TopkRouter, 12 experts in 4 groups."""
    settings = (3, 4, 2, "softmax", "group_limited_greedy", False, 2.5)
    topk_idx, topk_weight = by_index(*route(function, LOGITS, None, *settings))
    np.testing.assert_array_equal(topk_idx, [[0, 1, 8], [0, 1, 11]])
    expected = [[0.09667388, 0.70251930, 0.53897393], [0.57336932, 0.06246899, 0.55732334]]
    np.testing.assert_allclose(topk_weight, expected, rtol=2e-6)


@every_implementation("expert_gate")
def test_ties_go_to_the_lowest_index(function: Callable[..., None]) -> None:
    logits = np.zeros((1, 40), np.float32)
    logits[0, 33] = 1
    assert route(function, logits, None, 4, 1, 1, "sigmoid", "noaux_tc", True, 1.0)[0].tolist() == [[33, 0, 1, 2]]
    assert route(function, logits, None, 4, 8, 2, "sigmoid", "noaux_tc", True, 1.0)[0].tolist() == [[33, 0, 1, 2]]


@every_implementation("expert_gate")
def test_dropped_groups_lose_even_against_negative_choices(function: Callable[..., None]) -> None:
    """V3 drops groups with -inf: with a bias of -2 all choices are negative, and 0 would win."""
    logits = np.array([[3, 3, 0, 0, 2, 2]], np.float32)
    bias = np.full(6, -2, np.float32)
    topk_idx, _ = route(function, logits, bias, 4, 3, 2, "sigmoid", "noaux_tc", True, 1.0)
    assert topk_idx.tolist() == [[0, 1, 4, 5]]


@every_implementation("expert_gate")
def test_more_experts_than_the_kept_groups_hold_get_weight_zero(function: Callable[..., None]) -> None:
    logits = np.array([[3, 2, 1, 0]], np.float32)
    topk_idx, topk_weight = route(function, logits, None, 3, 2, 1, "softmax", "group_limited_greedy", False, 1.0)
    assert topk_idx.tolist() == [[0, 1, 2]]
    assert topk_weight[0, 2] == 0


@every_implementation("expert_gate")
def test_indices_are_valid_whatever_the_logits_hold(function: Callable[..., None]) -> None:
    logits = np.array([[np.nan] * 16, [np.inf] * 16, [-np.inf] * 16, [np.nan, 1] * 8], np.float32)
    for settings in (("sigmoid", "noaux_tc"), ("softmax", "greedy"), ("softmax", "group_limited_greedy")):
        topk_idx, _ = route(function, logits, None, 5, 4, 2, *settings, True, 1.0)
        assert topk_idx.min() >= 0
        assert topk_idx.max() < 16
        assert all(len(set(row)) == 5 for row in topk_idx.tolist())


@every_implementation("expert_gate")
@pytest.mark.parametrize(
    "settings",
    [
        (3, 1, 1, "relu", "greedy", False, 1.0),
        (3, 1, 1, "sigmoid", "best", False, 1.0),
        (13, 1, 1, "sigmoid", "greedy", False, 1.0),
        (0, 1, 1, "sigmoid", "greedy", False, 1.0),
        (3, 5, 1, "sigmoid", "noaux_tc", False, 1.0),
        (3, 4, 5, "sigmoid", "noaux_tc", False, 1.0),
        (3, 4, 0, "sigmoid", "group_limited_greedy", False, 1.0),
    ],
)
def test_impossible_settings_are_refused(function: Callable[..., None], settings: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"unknown|top_k|groups"):
        route(function, LOGITS, None, *settings)


@every_implementation_but("expert_gate", "reference")
@wrong_arguments(
    *wrong_floats("logits", 1),
    ("topk_idx", as_int64),
    ("topk_idx", one_axis_more),
    ("topk_idx", one_more(0)),
    ("topk_idx", one_more(1)),
    ("topk_idx", read_only),
    *wrong_floats("topk_weight", 2),
    ("topk_weight", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("expert_gate", function, name, change)


@every_implementation_but("expert_gate", "reference")
@pytest.mark.parametrize("bias", [np.zeros(11, "f4"), np.zeros(12), np.zeros((1, 12), "f4")])
def test_a_wrong_bias_is_refused(function: Callable[..., None], bias: np.ndarray) -> None:
    with pytest.raises(ValueError, match="bias"):
        route(function, LOGITS, bias, 3, 4, 2, "sigmoid", "noaux_tc", True, 2.5)
