"""Speculation: guesses change when tokens come, never which; and nothing is guessed where that loses time."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.engine.ngrams import NgramIndex
from deepzig.engine.request import Drafting
from deepzig.engine.speculation import TRUSTED, Speculator
from deepzig.errors import RequestError

GOLDEN = Path(__file__).parents[1] / "golden"
WAYS = [("mtp", 1), ("mtp", 3), ("ngram", 3), ("auto", 3)]


@pytest.fixture(scope="module")
def stories() -> deepzig.LLM:
    return deepzig.load("stories")


def prompts(llm: deepzig.LLM, count: int) -> list[list[int]]:
    """Beginnings of stories of the model's own, the same each time."""
    generations = [llm.submit("Once upon a time", sampled(20, seed)) for seed in range(count)]
    return [generation.result().token_ids for generation in generations]


def sampled(max_tokens: int, seed: int, speculation: str = "off", draft_tokens: int = 3) -> SamplingParams:
    return SamplingParams(
        max_tokens, temperature=1.0, seed=seed, ignore_eos=True, speculation=speculation, draft_tokens=draft_tokens
    )


def greedy(max_tokens: int, speculation: str = "off", draft_tokens: int = 3) -> SamplingParams:
    return SamplingParams(
        max_tokens, temperature=0.0, ignore_eos=True, logprobs=0, speculation=speculation, draft_tokens=draft_tokens
    )


def answers(llm: deepzig.LLM, starts: list[list[int]], params: SamplingParams) -> list[deepzig.GenerationResult]:
    """Served together, each as a tenant of its own: prefix hits change the form of attention, and with it bits."""
    name = f"{params.speculation} {params.draft_tokens}"
    generations = [llm.submit(start, params, tenant=f"{name} {i}") for i, start in enumerate(starts)]
    return [generation.result() for generation in generations]


def compare(llm: deepzig.LLM, count: int, max_tokens: int) -> None:
    """Greedy tokens and their log-probabilities, to the bit, in every way; shows acceptance."""
    starts = prompts(llm, count)
    plain = [(result.token_ids, result.logprobs) for result in answers(llm, starts, greedy(max_tokens))]
    for way, draft_tokens in WAYS:
        results = answers(llm, starts, greedy(max_tokens, way, draft_tokens))
        assert [(result.token_ids, result.logprobs) for result in results] == plain
        drafted = sum(result.timings.drafted_tokens for result in results)
        accepted = sum(result.timings.accepted_tokens for result in results)
        print(f"{way} {draft_tokens}: {accepted} of {drafted} guesses accepted on {count} prompts")
        assert 0 <= accepted <= drafted
        if way == "mtp":
            assert accepted > 0.2 * drafted > 0


def test_greedy_tokens_are_those_without_speculation(stories: deepzig.LLM) -> None:
    compare(stories, 50, 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_greedy_tokens_are_those_without_speculation_for_1000_prompts(stories: deepzig.LLM) -> None:
    compare(stories, 1000, 40)


@pytest.mark.parametrize(("way", "draft_tokens"), WAYS)
def test_sampled_tokens_are_those_without_speculation(stories: deepzig.LLM, way: str, draft_tokens: int) -> None:
    for seed in range(4):
        plain = stories.generate("Lily and Tom", sampled(40, seed))
        assert stories.generate("Lily and Tom", sampled(40, seed, way, draft_tokens)).token_ids == plain.token_ids


def test_sampled_texts_are_distributed_as_the_model_says(stories: deepzig.LLM) -> None:
    """Pearson's chi-square of three tokens, top_k 3, against products of the model's own probabilities."""
    prompt, n_texts = [0, 313, 1500], 1280
    expected = {}
    for text in itertools.product(range(3), repeat=3):
        ids, chance = list(prompt), 1.0
        for choice in text:
            logits = stories.logits(ids)[-1]
            top = np.argsort(-logits, kind="stable")[:3]
            probs = np.exp(logits[top].astype(np.float64) - logits[top[0]])
            chance *= probs[choice] / probs.sum()
            ids.append(int(top[choice]))
        expected[tuple(ids[3:])] = n_texts * chance
    params = [
        SamplingParams(3, temperature=1.0, top_k=3, top_p=1.0, seed=i, n=64, ignore_eos=True, speculation="mtp")
        for i in range(n_texts // 64)
    ]
    results = [generation.result() for generation in [stories.submit(prompt, each) for each in params]]
    assert sum(result.timings.drafted_tokens for result in results) > n_texts / 2
    counts = Counter(tuple(choice.token_ids) for result in results for choice in result.choices)
    assert set(counts) <= set(expected)
    chi_square = sum((counts[text] - mean) ** 2 / mean for text, mean in expected.items())
    assert chi_square < 54.1  # 26 degrees of freedom: exceeded once in a thousand times


def test_drafts_of_a_family_with_untrained_mtp_do_no_harm() -> None:
    llm = deepzig.load(GOLDEN / "v3_classic")
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 160, 70).tolist()
        plain = llm.generate(ids, greedy(30))
        result = llm.submit(ids, greedy(30, "mtp"), tenant="other").result()
        assert (result.token_ids, result.logprobs) == (plain.token_ids, plain.logprobs)


def test_mtp_without_its_layer_is_refused() -> None:
    llm = deepzig.load(GOLDEN / "v3_sharded")
    with pytest.raises(RequestError, match="MTP layer"):
        llm.generate([1, 2, 3], greedy(3, "mtp"))
    assert llm.generate([1, 2, 3], greedy(3, "auto")).token_ids == llm.generate([1, 2, 3], greedy(3)).token_ids
    with pytest.raises(RequestError, match="draft_tokens"):
        SamplingParams(draft_tokens=9)
    with pytest.raises(RequestError, match="medusa"):
        SamplingParams(speculation="medusa")


def test_ngrams_repeat_what_followed_last() -> None:
    index = NgramIndex()
    text = [1, 2, 3, 4, 5, 1, 2, 3]
    assert index.draft(text, 3) == [4, 5, 1]
    assert index.draft([*text, 9, 1, 2, 3], 2) == [9, 1]
    assert index.draft([*text, 9, 1, 2, 3, 7], 2) == []
    assert NgramIndex().draft([1, 2], 3) == []
    assert NgramIndex().draft([4, 4, 4, 4], 3) == [4]


def speculator(step_s: dict[int, float], draft_s: float) -> Speculator:
    """With these times of a step, by rows, and of drafts."""
    model = deepzig.load(GOLDEN / "v3_classic").model
    made = Speculator(model, model.make_cache(64), 64)
    for _ in range(TRUSTED):
        for n_rows, seconds in step_s.items():
            made.note_step(n_rows, seconds)
        for length in (1, 2, 3):
            made._drafts.add(length, length * draft_s)
    return made


@pytest.mark.parametrize(
    ("step_s", "draft_s", "acceptance", "length"),
    [
        ({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, 0.0, 0.9, 3),  # rows cost nothing: guess all
        ({1: 1.0, 2: 1.1, 3: 2.0, 4: 3.0}, 0.1, 0.8, 1),
        ({1: 1.0, 2: 1.1, 3: 2.0, 4: 3.0}, 0.1, 0.1, 0),  # hardly any is accepted
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, 0.0, 0.99, 0),  # rows cost what they bring
        ({}, 0.0, 0.9, 0),  # what a step takes without guesses is measured first
    ],
)
def test_auto_guesses_what_pays(step_s: dict[int, float], draft_s: float, acceptance: float, length: int) -> None:
    drafting = Drafting(None, [1000] * 3, [int(1000 * acceptance)] * 3)
    assert speculator(step_s, draft_s)._best_length(drafting, 3, 1) == length
