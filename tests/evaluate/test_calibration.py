"""calibrate: the statistics are those of the inputs, and the model is afterwards as before."""

from pathlib import Path

import numpy as np
import pytest

import deepzig
from bench.weight_tensors import dequantize
from deepzig.checkpoint.names import expected_tensors
from deepzig.checkpoint.recipe import is_embedding, is_router
from deepzig.engine.llm import LLM
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.evaluate.calibration import MIN_IMPORTANCE, calibrate
from deepzig.evaluate.expert_load import measure_experts
from deepzig.model.linear import Linear
from deepzig.model.workspace import Workspace

TEXT = "Once upon a time there was a little girl who had a red ball. She played with it in the park every day. " * 3


@pytest.fixture(scope="module")
def stories() -> LLM:
    return deepzig.load("stories")


def test_every_matrix_that_may_be_rounded_is_measured(stories: LLM) -> None:
    found = calibrate(stories, TEXT * 4)
    expected = expected_tensors(stories.config, 1).linear
    unused = {f"{expert}.{name}" for expert in found.never_used for name in ("gate_proj", "up_proj", "down_proj")}
    wanted = {m for m in expected if not (is_embedding(m) or is_router(m) or m.endswith(".shared_head.head"))}
    assert set(found.importance) == wanted - unused
    for module, counts in found.importance.items():
        assert counts.shape == (expected[module][1],) and counts.dtype == np.float32
        assert counts.min() >= MIN_IMPORTANCE and counts.mean() == pytest.approx(1, rel=1e-2)


def test_short_texts_measure_attention_too(stories: LLM) -> None:
    found = calibrate(stories, "Once upon a time").importance
    assert all(f"model.layers.{layer}.self_attn.kv_b_proj" in found for layer in range(6))  # the last is the MTP layer


def test_statistics_are_those_of_the_inputs(stories: LLM) -> None:
    """Inputs of the first layer's attention, computed here from traced hidden states."""
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode(TEXT.strip())
    found, trace = calibrate(stories, TEXT).importance, stories.trace(ids)
    layer = stories.model.layers[0]
    normed = layer.input_layernorm(trace.hidden_states[0], np.empty_like(trace.hidden_states[0]))
    for name in ("q_a_proj", "kv_a_proj_with_mqa"):
        check(found[f"model.layers.0.self_attn.{name}"], normed)


def check(found: np.ndarray, inputs: np.ndarray) -> None:
    size = np.sqrt((inputs.astype(np.float64) ** 2).mean(axis=0))
    np.testing.assert_allclose(found, size / size.mean(), rtol=1e-3)


def test_experts_are_measured_by_the_tokens_they_get(stories: LLM) -> None:
    """Looks at one expert of the last layer."""
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode(TEXT.strip())
    inputs: list[np.ndarray] = []
    moe = stories.model.layers[-1].mlp

    def watch(layer: int, hidden: np.ndarray, space: Workspace) -> None:
        if layer == len(stories.model.layers) - 1:
            inputs.append(space.normed.copy())  # what its MoE was given

    cache = stories.model.make_cache(len(ids))
    tokens = np.array(ids, np.int32)
    list(forward_chunks(stories.model, tokens, cache, chunk_size=len(ids), form="expanded", observer=watch))
    topk_idx = stories.trace(ids).topk_idx[len(stories.model.layers) - 1]
    expert = int(topk_idx[5, 0])
    given = inputs[0][(topk_idx == expert).any(axis=1)]
    gate, up = (given @ dequantize(w[expert]).T for w in (moe.experts.gate_proj, moe.experts.up_proj))
    path = f"model.layers.{len(stories.model.layers) - 1}.mlp.experts.{expert}"
    found = calibrate(stories, TEXT).importance
    check(found[f"{path}.gate_proj"], given)
    check(found[f"{path}.up_proj"], given)
    check(found[f"{path}.down_proj"], gate / (1 + np.exp(-gate)) * up)


def test_statistics_do_not_depend_on_threads() -> None:
    """Or else --resume with another number would be refused."""
    one, two = (calibrate(deepzig.load("stories", n_threads=n), TEXT).importance for n in (1, 2))
    assert one.keys() == two.keys() and all(np.array_equal(one[module], two[module]) for module in one)


def test_the_model_is_left_as_it_was(stories: LLM) -> None:
    ids = list(range(10, 40))
    before = stories.logits(ids)
    calibrate(stories, TEXT)
    np.testing.assert_array_equal(stories.logits(ids), before)
    assert type(stories.model.layers[0].self_attn.o_proj) is Linear


def test_experts_that_no_token_reached_are_listed(stories: LLM) -> None:
    found = calibrate(stories, "Hi")
    assert found.never_used
    assert all(f"{expert}.gate_proj" not in found.importance for expert in found.never_used)
    n_experts = stories.config.n_routed_experts * 5  # four MoE layers and the MTP layer's
    assert len(found.never_used) < n_experts
    assert found.tokens == 2


def test_a_model_without_tokenizer_is_refused() -> None:
    llm = deepzig.load(Path(__file__).resolve().parent.parent / "golden" / "v3_classic")
    with pytest.raises(deepzig.errors.RequestError, match="no tokenizer"):
        calibrate(llm, TEXT)


def test_a_model_that_gives_nan_is_refused(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = stories.model.layers[2].input_layernorm
    broken = layer.weight.copy()
    broken[3] = np.inf
    monkeypatch.setattr(layer, "weight", broken)
    with pytest.raises(deepzig.errors.NonFiniteLogitsError, match=r"layers\.2\.self_attn\.q_a_proj is given NaN"):
        calibrate(stories, TEXT)


def test_a_text_without_a_token_to_predict_is_refused(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.evaluate.windows.encode_documents", lambda llm, documents: ([], [[5]]))
    for measure in (calibrate, measure_experts):
        with pytest.raises(deepzig.errors.RequestError, match="no token to predict"):
            measure(stories, "a")
