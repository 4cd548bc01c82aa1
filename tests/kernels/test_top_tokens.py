"""The kernel top_tokens, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/top_tokens.py`."""

from collections.abc import Callable

import numpy as np
import pytest

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


@every_implementation("top_tokens")
def test_the_kept_tokens_of_a_large_vocabulary(function: Callable[..., None]) -> None:
    logits = np.random.default_rng(2).standard_normal(129_280, np.float32)
    token_ids, probs = np.empty(len(logits), np.int32), np.empty(len(logits), np.float32)
    function(logits, 1.0, 0, 0.5, 0.0, token_ids, probs, n_threads=1)
    n_kept = int((token_ids >= 0).sum())
    order = np.argsort(-logits, kind="stable")
    assert set(token_ids[:n_kept]) == set(order[:n_kept])
    assert probs.sum() >= 0.5 > probs[: n_kept - 1].sum()


@every_implementation("top_tokens")
@pytest.mark.parametrize("cut", [(0, 1.0), (5, 1.0), (0, 0.9)])
def test_quotients_beyond_float32_leave_the_likeliest(function: Callable[..., None], cut: tuple[int, float]) -> None:
    logits = np.array([1, 3e38, -3e38, -np.inf, 2], np.float32)
    token_ids, probs = np.empty(5, np.int32), np.empty(5, np.float32)
    with np.errstate(over="ignore"):
        function(logits, 1e-38, *cut, 0.0, token_ids, probs, n_threads=1)
    assert token_ids[np.argmax(probs)] == 1 and probs.max() == probs.sum() == 1


@every_implementation_but("top_tokens", "reference")
@wrong_arguments(
    *wrong_floats("logits", 1),
    ("token_ids", as_int64),
    ("token_ids", one_axis_more),
    ("token_ids", one_more(0)),
    ("token_ids", read_only),
    *wrong_floats("probs", 1),
    ("probs", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("top_tokens", function, name, change)
