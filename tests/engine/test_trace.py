"""Trace: what it derives from hidden states and choices. These themselves against HF: tests/test_golden.py."""

import numpy as np
import pytest

import deepzig
from deepzig.errors import RequestError


@pytest.fixture(scope="module")
def stories() -> deepzig.LLM:
    return deepzig.load("stories")


def test_shapes_norms_and_load_of_every_layer(stories: deepzig.LLM) -> None:
    config = stories.config
    trace = stories.trace("Once upon a time there was a little cat.")
    n_tokens = len(trace.token_ids)
    assert trace.token_ids.tolist() == stories.encode("Once upon a time there was a little cat.").tolist()
    assert trace.hidden_norms.shape == (config.num_hidden_layers + 1, n_tokens)
    assert trace.hidden_norms[2, 3] == pytest.approx(np.sqrt((trace.hidden_states[2][3].astype(float) ** 2).sum()))
    assert set(trace.expert_load) == {n for n in range(config.num_hidden_layers) if config.is_moe_layer(n)}
    for layer, load in trace.expert_load.items():
        assert load.shape == (config.n_routed_experts,)
        assert load.sum() == n_tokens * config.num_experts_per_tok
        chosen = trace.topk_idx[layer]
        assert load[chosen[0, 0]] == (chosen == chosen[0, 0]).sum() > 0
        weights = trace.topk_weight[layer].sum(axis=1)  # norm_topk_prob: they share the scaling factor
        np.testing.assert_allclose(weights, config.routed_scaling_factor, rtol=1e-5)


def test_a_trace_outlives_the_next(stories: deepzig.LLM) -> None:
    """Its arrays are copies, not the workspace of the step."""
    first, again = (stories.trace([0, 50, 60, 70]) for _ in range(2))
    stories.trace([0, 80, 90, 100])
    for layer, hidden in enumerate(first.hidden_states):
        np.testing.assert_array_equal(hidden, again.hidden_states[layer])


def test_a_trace_shows_no_arrays_and_is_compared_as_a_whole(stories: deepzig.LLM) -> None:
    first, again = (stories.trace([0, 50, 60]) for _ in range(2))
    assert repr(first) == "<Trace of 3 tokens, 5 layers, 16 experts>"
    assert first == first and first != again


def test_wrong_tokens_are_refused(stories: deepzig.LLM) -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        stories.trace([10**6])
