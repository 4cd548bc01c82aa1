"""Expert load of a text: the sums of its windows, and what is said of their balance."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig.errors import RequestError
from deepzig.evaluate.expert_load import LayerLoad, measure_experts
from deepzig.evaluate.windows import SEPARATOR

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def stories() -> deepzig.LLM:
    return deepzig.load("stories")


def test_documents_add_up(stories: deepzig.LLM) -> None:
    texts = ["Once upon a time there was a cat.", "Tom had a red ball. He was happy."]
    load = measure_experts(stories, f"\n{SEPARATOR}\n".join(texts))
    traces = [stories.trace(text) for text in texts]
    assert load.n_tokens == sum(len(trace.token_ids) - 1 for trace in traces)  # without BOS
    assert [layer.layer for layer in load.layers] == sorted(traces[0].expert_load)
    for layer in load.layers:
        chosen = np.concatenate([trace.topk_idx[layer.layer][1:] for trace in traces])
        weights = np.concatenate([trace.topk_weight[layer.layer][1:] for trace in traces])
        for expert in range(load.n_experts):
            assert layer.tokens[expert] == (chosen == expert).sum()
            assert layer.weight[expert] == pytest.approx(weights[chosen == expert].sum(), rel=1e-5)


def test_tokens_of_a_text_longer_than_the_context_count_once(stories: deepzig.LLM) -> None:
    text = "Tom had a red ball. " * 250
    assert stories.tokenizer is not None
    n_tokens = len(stories.tokenizer.encode(text.strip(), add_bos=False))
    assert n_tokens > stories.config.max_position_embeddings
    load = measure_experts(stories, text)
    assert load.n_tokens == n_tokens
    assert load.layers[0].tokens.sum() == load.n_tokens * load.experts_per_token


def test_balance() -> None:
    even = LayerLoad(1, np.full(8, 5), np.ones(8))
    one_sided = LayerLoad(1, np.array([0, 8, 0, 0]), np.ones(4))
    assert (even.n_unused, even.peak) == (0, 1.0)
    assert even.n_effective == pytest.approx(8)
    assert (one_sided.n_unused, one_sided.busiest, one_sided.peak, one_sided.n_effective) == (3, 1, 4.0, 1.0)


def test_models_that_have_none_are_refused(stories: deepzig.LLM) -> None:
    with pytest.raises(RequestError, match="no tokenizer"):
        measure_experts(deepzig.load(GOLDEN / "v3_classic"), "text")
    dense = deepzig.load("stories")
    dense.config = dataclasses.replace(dense.config, first_k_dense_replace=dense.config.num_hidden_layers)
    with pytest.raises(RequestError, match="no layer with experts"):
        measure_experts(dense, "text")
