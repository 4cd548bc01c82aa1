"""evaluate: perplexity and divergence against their definitions, computed here in float64 from all logits."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.recipe import Recipe
from deepzig.engine.llm import LLM
from deepzig.errors import NonFiniteLogitsError, RequestError
from deepzig.evaluate import perplexity
from deepzig.evaluate.perplexity import evaluate, log_probabilities

STORIES = [
    "Once upon a time there was a little girl who had a red ball. She played with it in the park every day.",
    "Tom and his dog went to the lake. The dog saw a fish and jumped into the water. Tom laughed and laughed.",
]
TEXT = "\n<|endoftext|>\n".join(STORIES)


@pytest.fixture(scope="module")
def stories() -> LLM:
    return deepzig.load("stories")


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("int4") / "out"
    convert(BUNDLED["stories"], directory, Options(Recipe("int4")), n_threads=2)
    return deepzig.load(directory)


def exact_logprobs(llm: LLM, token_ids: list[int]) -> np.ndarray:
    """f64 (T, vocab_size)."""
    logits = llm.logits(token_ids).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def token_ids_of(llm: LLM, story: str) -> list[int]:
    assert llm.tokenizer is not None
    return llm.tokenizer.encode(story)


def test_perplexity_is_its_definition(stories: LLM) -> None:
    nll: list[float] = []
    for story in STORIES:
        ids = token_ids_of(stories, story)
        nll.extend(-exact_logprobs(stories, ids)[np.arange(len(ids) - 1), ids[1:]])
    result = evaluate(stories, TEXT)
    assert (result.tokens, result.documents, result.divergence) == (len(nll), 2, None)
    assert result.nll == pytest.approx(np.mean(nll), rel=1e-5)
    assert result.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    assert 2 < result.perplexity < 60


def test_divergence_is_its_definition(stories: LLM, int4: LLM) -> None:
    kl, same = [], []
    for story in STORIES:
        ids = token_ids_of(stories, story)
        p, q = (exact_logprobs(llm, ids)[:-1] for llm in (stories, int4))
        kl.extend((np.exp(p) * (p - q)).sum(axis=1))
        same.extend(p.argmax(axis=1) == q.argmax(axis=1))
    found = evaluate(int4, TEXT, reference=stories).divergence
    assert found is not None
    assert found.mean_kl == pytest.approx(np.mean(kl), rel=1e-3)
    assert found.p99_kl == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert found.same_top == pytest.approx(np.mean(same))
    assert 0.001 < found.mean_kl < 0.1


def test_a_model_does_not_diverge_from_itself(stories: LLM) -> None:
    result = evaluate(stories, TEXT, reference=stories)
    assert result.divergence is not None
    assert dataclasses.astuple(result.divergence) == pytest.approx((0, 0, 1), abs=1e-6)


def test_few_rows_at_a_time_give_the_same(stories: LLM, int4: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(int4, TEXT, reference=stories)
    monkeypatch.setattr(perplexity, "SCORED_ROWS", 3)
    parts = evaluate(int4, TEXT, reference=stories)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert parts.divergence is not None and whole.divergence is not None
    assert dataclasses.astuple(parts.divergence) == pytest.approx(dataclasses.astuple(whole.divergence), rel=1e-4)


def test_more_context_is_no_worse(stories: LLM) -> None:
    """Windows of 16 tokens with less and less stride."""
    found = [evaluate(stories, TEXT, window=16, stride=stride).perplexity for stride in (16, 4, 1)]
    assert found[0] > found[1] > found[2]
    assert evaluate(stories, TEXT, window=16).perplexity == found[0]


def test_progress_counts_predicted_tokens(stories: LLM) -> None:
    seen: list[tuple[int, int]] = []
    tokens = evaluate(stories, TEXT, progress=lambda done, total: seen.append((done, total))).tokens
    assert seen[-1] == (tokens, tokens)


def test_logits_of_a_large_vocabulary_are_not_held_together(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = log_probabilities
    monkeypatch.setattr(perplexity, "log_probabilities", lambda logits: rows.append(len(logits)) or original(logits))
    evaluate(stories, " ".join(STORIES * 3))
    assert max(rows) == perplexity.SCORED_ROWS and len(rows) > 1


def test_reference_must_be_of_the_same_vocabulary(stories: LLM) -> None:
    other = deepzig.load(Path(__file__).resolve().parent.parent / "golden" / "v3_classic")
    with pytest.raises(RequestError, match="vocabularies of 4096 and 160"):
        evaluate(stories, TEXT, reference=other)


def test_reference_must_split_texts_alike(stories: LLM, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED["stories"], tmp_path / "other")
    path = tmp_path / "other/tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(RequestError, match="different tokenizers"):
        evaluate(stories, TEXT, reference=deepzig.load(tmp_path / "other"))


def test_a_model_without_tokenizer_cannot_be_evaluated() -> None:
    llm = deepzig.load(Path(__file__).resolve().parent.parent / "golden" / "v3_classic")
    with pytest.raises(RequestError, match="has no tokenizer"):
        evaluate(llm, TEXT)


def test_a_text_of_nothing_but_separators_is_an_error(stories: LLM) -> None:
    with pytest.raises(RequestError, match="no tokens"):
        evaluate(stories, "<|endoftext|>\n\n<|endoftext|>\n")


def test_log_probabilities_of_large_logits() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4], [-3e4, -3e4, -3e4]], np.float32)
    found = np.exp(log_probabilities(logits).astype(np.float64))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[1], 1 / 3, rtol=1e-6)


def test_logits_beyond_any_perplexity_are_an_error(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "log_probabilities", lambda logits: np.full_like(logits, -800.0))
    with pytest.raises(NonFiniteLogitsError, match="800 nats"):
        evaluate(stories, TEXT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_an_error(value: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = value
    with pytest.raises(NonFiniteLogitsError, match="deepzig verify"):
        log_probabilities(logits)
