"""Beam search: the answers of HF transformers, whatever else is served; its pages come back.

What HF finds: tests/golden/*/beams.json, made by tests/make_golden_beams.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.engine import scheduler
from deepzig.engine.beam_search import BeamSearch, Continuation
from deepzig.engine.engine import Engine
from deepzig.engine.request import Request
from deepzig.errors import ContextLengthError, NonFiniteLogitsError, RequestError
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/beams.json"))
NO_EOS: frozenset[int] = frozenset()
SEARCH_FIELDS = ("max_tokens", "num_beams", "length_penalty", "early_stopping", "repetition_penalty")


def searches_of(name: str) -> list[dict[str, Any]]:
    return list(json.loads((GOLDEN / name / "beams.json").read_text())["searches"])


def beams(num_beams: int, max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens, temperature=0.0, top_k=0, top_p=1.0, num_beams=num_beams, n=num_beams, **more
    )


def some_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 4000, n).astype(np.int32)


@pytest.fixture(scope="module")
def model() -> DeepseekModel:
    return deepzig.load("stories").model


def submit(engine: Engine, prompt: np.ndarray, params: SamplingParams, priority: int = 0) -> Request:
    request = engine.make_request(prompt, params, NO_EOS, priority=priority)
    engine.submit(request)
    return request


def run_all(engine: Engine) -> None:
    while engine.step():
        pass


def answers(request: Request) -> list[list[int]]:
    assert request.error is None and request.is_finished
    found: list[list[int]] = [[] for _ in range(request.params.n)]
    for event in request.events:
        found[event.index].append(event.token)
    return found


def test_every_golden_checkpoint_has_searches() -> None:
    assert set(CASES) == {config.parent.name for config in GOLDEN.glob("*/config.json")}
    assert all(len(searches_of(name)) >= 4 for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_answers_and_scores_are_those_of_transformers(name: str) -> None:
    llm = deepzig.load(GOLDEN / name)
    prompt = np.load(GOLDEN / name / "expected.npz")["ids"]
    for search in searches_of(name):
        llm.defaults = dataclasses.replace(llm.defaults, eos_token_ids=frozenset(search["eos_token_ids"]))
        params = SamplingParams(**{field: search[field] for field in SEARCH_FIELDS}, n=search["num_beams"])
        result = llm.generate(prompt[: search["n_prompt"]].tolist(), params)
        assert [choice.token_ids for choice in result.choices] == search["answers"]
        np.testing.assert_allclose([choice.score or 0.0 for choice in result.choices], search["scores"], rtol=1e-4)
        for choice in result.choices:
            assert choice.finish_reason == ("stop" if choice.token_ids[-1] in search["eos_token_ids"] else "length")


def test_one_best_answer_is_the_first_of_many() -> None:
    llm = deepzig.load("stories", deterministic=True)
    one, three = (
        llm.generate("Once upon a time", SamplingParams(max_tokens=30, num_beams=3, n=n, logprobs=1)) for n in (1, 3)
    )
    assert len(one.choices) == 1 and len(three.choices) == 3
    assert one.token_ids == three.token_ids and one.choices[0].score == three.choices[0].score
    scores = [choice.score or 0.0 for choice in three.choices]
    assert scores == sorted(scores, reverse=True)
    for choice in three.choices:
        assert choice.logprobs is not None and choice.score is not None
        assert [entry.token_id for entry in choice.logprobs] == choice.token_ids
        total = sum(entry.logprob for entry in choice.logprobs)
        assert choice.score == pytest.approx(total / len(choice.token_ids), rel=1e-4)
    assert one.timings.decode_tokens == len(one.token_ids) - 1


def test_beams_find_what_greedy_misses() -> None:
    llm = deepzig.load("stories")

    def logprob(params: SamplingParams) -> float:
        result = llm.generate("The dog", params)
        assert result.logprobs is not None
        return sum(entry.logprob for entry in result.logprobs)

    greedy = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, logprobs=0)
    assert logprob(dataclasses.replace(greedy, num_beams=4)) > logprob(greedy)


def test_a_stop_string_cuts_the_answers() -> None:
    llm = deepzig.load("stories")
    params = SamplingParams(max_tokens=30, num_beams=2, n=2)
    whole = llm.generate("Once upon a time", params).text
    stop = whole[15:20]
    result = llm.generate("Once upon a time", dataclasses.replace(params, stop=(stop,)))
    assert result.text == whole[: whole.index(stop)] and result.finish_reason == "stop"


def test_a_stop_token_ends_beams() -> None:
    llm = deepzig.load("stories")
    params = SamplingParams(max_tokens=30, num_beams=3, n=3, ignore_eos=True)
    stop = llm.generate("Once upon a time", params).token_ids[12]
    choices = llm.generate("Once upon a time", dataclasses.replace(params, stop_token_ids=[stop])).choices
    assert all(stop not in choice.token_ids[:-1] for choice in choices)
    assert all((choice.token_ids[-1] == stop) == (choice.finish_reason == "stop") for choice in choices)
    assert choices[0].finish_reason == "stop"


def test_company_threads_and_pages_do_not_change_answers(model: DeepseekModel) -> None:
    """Beams across a page's end, alone, beside other requests, with one thread."""
    prompt, params = some_ids(50), beams(4, 40)
    alone = Engine(model, 8192)
    expected = submit(alone, prompt, params)
    run_all(alone)
    one_thread = Engine(deepzig.load("stories", n_threads=1).model, 8192)
    again = submit(one_thread, prompt, params)
    run_all(one_thread)
    crowd = Engine(model, 8192)
    others = [submit(crowd, some_ids(100, 1), beams(3, 30)), submit(crowd, some_ids(20, 2), beams(1, 60))]
    together = submit(crowd, prompt, params)
    run_all(crowd)
    assert answers(together) == answers(again) == answers(expected)
    assert all(len(answers(other)[0]) == other.params.max_tokens for other in others)
    for engine in (alone, one_thread, crowd):
        stats = engine.stats()
        assert stats.n_held_pages == stats.n_prefix_pages and engine.n_active == 0


def test_other_requests_go_on_during_a_search(model: DeepseekModel) -> None:
    engine = Engine(model, 8192)
    search, other = submit(engine, some_ids(20), beams(4, 40)), submit(engine, some_ids(20, 1), beams(1, 40))
    for _ in range(10):
        engine.step()
    assert len(other.events) >= 9 and not search.events and len(search.branches) == 4
    shared = {branch.pages[0] for branch in search.branches}
    assert len({id(branch.pages) for branch in search.branches}) == 4 and len(shared) <= 4
    run_all(engine)
    assert search.is_finished and other.is_finished


def test_beams_share_the_pages_of_a_long_prompt(model: DeepseekModel) -> None:
    engine = Engine(model, 16 * 1024)
    search = submit(engine, some_ids(640), beams(8, 30))
    while len(search.branches) < 8 or len(search.branches[0].tokens) < 660:
        engine.step()
    pages = {page for branch in search.branches for page in branch.pages}
    assert len(pages) <= 10 + 8  # ten of the prompt, and one that each beam writes
    engine.cancel(search)
    assert engine.stats().n_held_pages == engine.stats().n_prefix_pages


def test_preempted_searches_come_back_with_the_same_answers() -> None:
    model = deepzig.load("stories", deterministic=True).model
    prompts, params = [some_ids(70, seed) for seed in range(3)], beams(3, 70)
    expected = []
    for prompt in prompts:
        engine = Engine(model, 8192)
        expected.append(submit(engine, prompt, params))
        run_all(engine)
    engine = Engine(model, 11 * PAGE_SIZE)  # one search needs 9 pages at most, three may need 27
    requests = [submit(engine, prompt, params) for prompt in prompts]
    run_all(engine)
    assert engine.stats().preemptions > 0
    assert [answers(request) for request in requests] == [answers(request) for request in expected]
    assert engine.stats().n_held_pages == engine.stats().n_prefix_pages


def test_an_urgent_search_does_not_wait_for_half_of_another(model: DeepseekModel) -> None:
    """Beams are admitted together: a search that has some of its beams back would hold their pages forever."""
    engine = Engine(model, 8 * PAGE_SIZE)
    first = submit(engine, some_ids(60), beams(2, 100))
    for _ in range(20):
        engine.step()
    urgent = submit(engine, some_ids(60, 1), beams(2, 100), priority=1)
    for _ in range(1000):
        engine.step()
    assert urgent.is_finished and first.is_finished


def test_a_search_gives_way_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_RUNNING", 3)
    model = deepzig.load("stories", deterministic=True).model
    alone, engine = Engine(model, 2048), Engine(model, 2048)
    expected, search = (submit(each, some_ids(70), beams(3, 20)) for each in (alone, engine))
    run_all(alone)
    for _ in range(5):
        engine.step()
    submit(engine, some_ids(10), beams(1, 4), priority=1)
    engine.step()
    assert engine.n_waiting == 3 and engine.stats().preemptions == 1
    run_all(engine)
    assert answers(search) == answers(expected) and engine.stats().n_held_pages == engine.stats().n_prefix_pages


def test_nan_fails_the_search(model: DeepseekModel) -> None:
    engine = Engine(model, 4096)
    search, other = submit(engine, some_ids(20), beams(3, 20)), submit(engine, some_ids(20, 1), beams(1, 20))
    for _ in range(4):
        engine.step()
    search.branches[1].sampler.scores = lambda _: (_ for _ in ()).throw(NonFiniteLogitsError("broken"))  # type: ignore[assignment, method-assign]
    run_all(engine)
    assert isinstance(search.error, NonFiniteLogitsError) and other.finish_reason == "length"
    assert engine.stats().n_held_pages == engine.stats().n_prefix_pages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "n": 3}, "above num_beams"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"num_beams": 65}, "above 64"),
    ],
)
def test_impossible_searches_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        deepzig.load(GOLDEN / "v3_classic").generate([1], SamplingParams(**given))


def test_a_search_that_cannot_fit_the_cache_is_refused(model: DeepseekModel) -> None:
    engine = Engine(model, 8 * PAGE_SIZE)
    with pytest.raises(ContextLengthError, match="fewer beams"):
        engine.make_request(some_ids(100), beams(4, 60), NO_EOS)
    assert engine.make_request(some_ids(100), beams(4, 28), NO_EOS).beam_search is not None


def test_a_search_ends_as_early_stopping_says() -> None:
    """Token 0 ends: after one step one answer is there, after two both."""
    row = np.log(np.array([0.6, 0.3, 0.1], np.float32))

    def steps(early_stopping: bool | str, length_penalty: float) -> int:
        params = beams(2, 50, early_stopping=early_stopping, length_penalty=length_penalty)
        search, count, n_beams = BeamSearch(params, frozenset({0}), 50), 1, 1
        while found := search.advance([row] * n_beams):
            n_beams, count = len(found), count + 1
        assert len(search.finished) == 2
        return count

    assert steps(True, 1.0) == 2
    assert steps(False, 0.0) == 2  # nothing longer can be likelier
    assert steps(False, 1.0) <= steps("never", 1.0)
    assert steps("never", 1.0) > 2


@pytest.mark.parametrize("length_penalty", [20.0, -20.0])
def test_scores_of_long_answers_have_digits(length_penalty: float) -> None:
    """300 ** 20 and its inverse are no float32."""
    row = np.log(np.array([0.01, 0.6, 0.39], np.float32))
    search, n_beams = BeamSearch(beams(3, 300, length_penalty=length_penalty), frozenset({0}), 300), 1
    while found := search.advance([row] * n_beams):
        n_beams = len(found)
    expected = [
        sum(float(row[token]) for token in each.tokens) / len(each.tokens) ** length_penalty for each in search.finished
    ]
    np.testing.assert_allclose([each.score for each in search.finished], expected, rtol=1e-4)
    assert expected == sorted(expected, reverse=True) and len(set(expected)) > 1


def test_the_first_step_looks_at_one_beam() -> None:
    search = BeamSearch(beams(3, 5), NO_EOS, 5)
    found = search.advance([np.log(np.array([0.1, 0.2, 0.4, 0.3], np.float32))])
    assert found == [Continuation(0, 2), Continuation(0, 3), Continuation(0, 1)]
