"""Engine: what is served together equals what is served alone; pages come back; prefixes are found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import deepzig
from deepzig.engine import scheduler
from deepzig.engine.engine import Engine
from deepzig.engine.request import Request
from deepzig.engine.sampling import SamplingParams
from deepzig.errors import ContextLengthError, NonFiniteLogitsError, RequestError
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel

NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model() -> DeepseekModel:
    return deepzig.load("stories").model


@pytest.fixture(scope="module")
def exact_model() -> DeepseekModel:
    return deepzig.load("stories", deterministic=True).model


def greedy(max_tokens: int, speculation: str = "off", n: int = 1) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=0.0, top_k=0, top_p=1.0, speculation=speculation, n=n)


def some_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 4000, n).astype(np.int32)


def submit(engine: Engine, prompt: np.ndarray, params: SamplingParams, **more: Any) -> Request:
    request = engine.make_request(prompt, params, NO_EOS, **more)
    engine.submit(request)
    return request


def answer(request: Request, index: int = 0) -> list[int]:
    """Tokens of a branch, from its events, which stay."""
    return [event.token for event in request.events if event.index == index]


def answer_of(engine: Engine, prompt: np.ndarray, max_tokens: int = 12, tenant: str = "") -> list[int]:
    request = submit(engine, prompt, greedy(max_tokens), tenant=tenant)
    run_all(engine)
    return answer(request)


def held_by_prefixes_alone(engine: Engine) -> bool:
    stats = engine.stats()
    return engine.n_active == 0 and stats.n_held_pages == stats.n_prefix_pages


def run_all(engine: Engine) -> None:
    while engine.step():
        pass


def test_requests_together_answer_as_alone(model: DeepseekModel) -> None:
    prompts = [some_ids(n, seed=n) for n in (1, 20, 63, 64, 65, 200, 600)]
    alone = [answer_of(Engine(model, 4096), prompt) for prompt in prompts]
    engine = Engine(model, 4096)
    requests = [submit(engine, prompt, greedy(12)) for prompt in prompts]
    run_all(engine)
    assert [answer(request) for request in requests] == alone
    assert held_by_prefixes_alone(engine)


def test_sampled_answers_do_not_depend_on_company(model: DeepseekModel) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, top_k=0, top_p=0.9, seed=4)
    alone = Engine(model, 1024)
    first = submit(alone, some_ids(10), params)
    run_all(alone)
    engine = Engine(model, 1024)
    requests = [submit(engine, some_ids(10, seed), params) for seed in (1, 0, 2)]
    run_all(engine)
    assert answer(requests[1]) == answer(first)


def test_preempted_requests_come_back_with_the_same_answer(exact_model: DeepseekModel) -> None:
    prompts = [some_ids(100, seed) for seed in range(3)]
    alone = [answer_of(Engine(exact_model, 1024), prompt, 90) for prompt in prompts]
    engine = Engine(exact_model, 6 * PAGE_SIZE)  # two texts of 190 tokens, not three
    requests = [submit(engine, prompt, greedy(90)) for prompt in prompts]
    run_all(engine)
    assert [answer(request) for request in requests] == alone


def test_a_prefix_is_read_once(exact_model: DeepseekModel) -> None:
    engine = Engine(exact_model, 4096)
    shared = some_ids(300)
    answer_of(engine, shared)
    for n_shared in (299, 256, 130, 64, 10):
        prompt = np.concatenate([shared[:n_shared], some_ids(5, seed=9)])
        request = submit(engine, prompt, greedy(8))
        run_all(engine)
        assert request.n_cached == n_shared
        assert answer(request) == answer_of(Engine(exact_model, 1024), prompt, 8)


def test_the_answer_is_part_of_the_next_prefix(model: DeepseekModel) -> None:
    engine = Engine(model, 4096)
    first = submit(engine, some_ids(50), greedy(40))
    run_all(engine)
    follow_up = np.array([*first.branches[0].tokens, 7, 8, 9], np.int32)
    second = submit(engine, follow_up, greedy(4))
    run_all(engine)
    assert second.n_cached == 89  # the last token was never fed to the model


def test_tenants_do_not_share_prefixes(model: DeepseekModel) -> None:
    engine = Engine(model, 4096)
    answer_of(engine, some_ids(200), tenant="a")
    other, same = (submit(engine, some_ids(200), greedy(2), tenant=tenant) for tenant in ("b", "a"))
    run_all(engine)
    assert (other.n_cached, same.n_cached) == (0, 199)


def test_kept_prefixes_give_way_to_requests(model: DeepseekModel) -> None:
    engine = Engine(model, 8 * PAGE_SIZE)
    for seed in range(10):
        answer_of(engine, some_ids(200, seed), 3)
        assert held_by_prefixes_alone(engine) and engine.stats().n_prefix_pages <= 8


def test_urgent_requests_are_served_first(model: DeepseekModel) -> None:
    engine = Engine(model, 4096)
    late = submit(engine, some_ids(600, 1), greedy(1))
    urgent = submit(engine, some_ids(600, 2), greedy(1), priority=1)
    while not (late.is_finished or urgent.is_finished):
        engine.step()
    assert urgent.is_finished and not late.is_finished


def test_less_urgent_requests_give_up_their_places_and_resume_where_they_were(
    exact_model: DeepseekModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_RUNNING", 2)
    engine = Engine(exact_model, 1024)
    older, younger, waiting = (submit(engine, some_ids(50, seed), greedy(20)) for seed in range(3))
    for _ in range(5):
        engine.step()
    urgent = submit(engine, some_ids(10, 3), greedy(1), priority=1)
    engine.step()
    assert [len(answer(request)) for request in (older, younger, waiting, urgent)] == [6, 5, 0, 1]
    rows: list[int] = []
    engine.observer = lambda layer, hidden, _: rows.append(len(hidden) if layer == 0 else 0)
    engine.step()
    assert sum(rows) == 2 and len(answer(younger)) == 6
    run_all(engine)
    for seed, request in enumerate((older, younger, waiting)):
        assert answer(request) == answer_of(Engine(exact_model, 1024), some_ids(50, seed), 20)
    assert engine.stats().preemptions == 1 and held_by_prefixes_alone(engine)


def test_a_preempted_prompt_is_read_on_and_not_counted_as_cached(
    exact_model: DeepseekModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_RUNNING", 1)
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 100)
    engine = Engine(exact_model, 1024)
    request = submit(engine, some_ids(250), greedy(2))
    engine.step()
    submit(engine, some_ids(10, 1), greedy(1), priority=1)
    engine.step()
    engine.step()
    assert (request.n_prefilled, request.n_cached) == (200, 0)
    run_all(engine)
    assert answer(request) == answer_of(Engine(exact_model, 1024), some_ids(250), 2)


@pytest.mark.parametrize("n", [1, 3])
def test_less_urgent_requests_give_up_their_pages(exact_model: DeepseekModel, n: int) -> None:
    engine = Engine(exact_model, 8 * PAGE_SIZE)
    request = submit(engine, some_ids(330), greedy(60, n=n))
    for _ in range(4):
        engine.step()
    urgent = submit(engine, some_ids(300, 1), greedy(60), priority=1)
    engine.step()
    assert len(answer(urgent)) == 1 and engine.stats().preemptions >= n
    run_all(engine)
    alone = answer_of(Engine(exact_model, 1024), some_ids(330), 60)
    assert [answer(request, index) for index in range(n)] == [alone] * n
    assert answer(urgent) == answer_of(Engine(exact_model, 1024), some_ids(300, 1), 60)
    assert held_by_prefixes_alone(engine)


def test_nobody_gives_way_to_a_request_that_cannot_begin_for_it(
    exact_model: DeepseekModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of its priority hold the pages, then the places, that it waits for."""
    engine = Engine(exact_model, 10 * PAGE_SIZE)
    holder, low = submit(engine, some_ids(350, 1), greedy(40), priority=1), submit(engine, some_ids(50, 2), greedy(40))
    engine.step()
    submit(engine, some_ids(350, 3), greedy(5), priority=1)
    run_all(engine)
    assert low.is_finished and holder.is_finished and engine.stats().preemptions == 0
    monkeypatch.setattr(scheduler, "MAX_RUNNING", 4)
    engine = Engine(exact_model, 4096)
    submit(engine, some_ids(50, 1), greedy(40, n=3), priority=1)
    low = submit(engine, some_ids(50, 2), greedy(9))
    engine.step()
    submit(engine, some_ids(50, 3), greedy(5, n=2), priority=1)
    run_all(engine)
    assert low.is_finished and engine.stats().preemptions == 0


def test_cancelling_frees_the_pages(model: DeepseekModel) -> None:
    engine = Engine(model, 1024)
    waiting, running = (submit(engine, some_ids(100, seed), greedy(50)) for seed in (0, 1))
    engine.cancel(waiting)
    engine.step()
    engine.cancel(running)
    engine.cancel(running)
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert held_by_prefixes_alone(engine)
    assert not engine.step()


def test_cancelling_one_branch_leaves_the_others(model: DeepseekModel) -> None:
    engine = Engine(model, 1024)
    request = submit(engine, some_ids(70), greedy(20, n=3))
    for _ in range(5):
        engine.step()
    engine.cancel(request, 1, "stop")
    run_all(engine)
    assert [len(answer(request, index)) for index in range(3)] == [20, 5, 20]
    assert request.finish_reason == "length" and held_by_prefixes_alone(engine)


def test_one_request_with_nan_does_not_hurt_another(model: DeepseekModel) -> None:
    engine = Engine(model, 1024)
    bad = submit(engine, some_ids(10), greedy(5))
    good = submit(engine, some_ids(10, 1), greedy(5))
    broken = NonFiniteLogitsError("broken")

    def fail(_logits: np.ndarray) -> int:
        raise broken

    bad.branches[0].sampler.sample = fail  # type: ignore[method-assign]
    bad.branches[0].sampler.is_greedy = False
    run_all(engine)
    assert bad.error is broken and bad.finish_reason == "error"
    assert answer(good) == answer_of(Engine(model, 1024), some_ids(10, 1), 5)
    assert engine.stats().finished == {"error": 1, "length": 1}


def test_nothing_is_kept_of_a_prompt_that_gives_nan(model: DeepseekModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, 1024)
    bad = submit(engine, some_ids(130), greedy(5))
    monkeypatch.setattr(model, "logits", lambda hidden: np.full((len(hidden), 4096), np.nan, np.float32))
    engine.step()
    assert isinstance(bad.error, NonFiniteLogitsError) and engine.stats().n_held_pages == 0


def test_branches_share_the_pages_of_their_prompt(model: DeepseekModel) -> None:
    engine = Engine(model, 4096)
    request = submit(engine, some_ids(200), greedy(60, n=4))
    engine.step()
    assert engine.stats().n_held_pages == 4  # of 200 tokens; nobody has written after them
    engine.step()
    assert engine.stats().n_held_pages == 7  # three copies of the page that all write into
    run_all(engine)
    alone = answer_of(Engine(model, 1024), some_ids(200), 60)
    assert [answer(request, index) for index in range(4)] == [alone] * 4
    assert held_by_prefixes_alone(engine)


def test_branches_draw_for_themselves_and_the_first_as_if_alone(model: DeepseekModel) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, top_k=0, top_p=1.0, seed=3, n=3)
    engine, again, alone = Engine(model, 1024), Engine(model, 1024), Engine(model, 1024)
    request, repeated = submit(engine, some_ids(10), params), submit(again, some_ids(10), params)
    single = submit(alone, some_ids(10), replace(params, n=1))
    for each in (engine, again, alone):
        run_all(each)
    answers = [answer(request, index) for index in range(3)]
    assert len({tuple(each) for each in answers}) == 3
    assert answers[0] == answer(single) and answers == [answer(repeated, index) for index in range(3)]


def test_preempted_branches_come_back_with_the_same_answer(exact_model: DeepseekModel) -> None:
    engine = Engine(exact_model, 4 * PAGE_SIZE)  # one page of the prompt and two for each of three branches do not fit
    request = submit(engine, some_ids(100), greedy(90, n=3))
    run_all(engine)
    alone = answer_of(Engine(exact_model, 1024), some_ids(100), 90)
    assert [answer(request, index) for index in range(3)] == [alone] * 3
    assert engine.stats().preemptions > 0 and held_by_prefixes_alone(engine)


def test_short_prompts_are_read_together_and_pieces_do_not_depend_on_company(
    model: DeepseekModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 512)
    engine = Engine(model, 8192)
    short = [submit(engine, some_ids(50, seed), greedy(2)) for seed in range(9)]
    long = submit(engine, some_ids(700, 10), greedy(2))
    engine.step()
    assert [request.n_prefilled for request in short] == [50] * 9 and long.n_prefilled == 0
    engine.step()
    assert long.n_prefilled == 512
    run_all(engine)
    assert answer(long) == answer_of(Engine(model, 1024), some_ids(700, 10), 2)


def test_branches_that_are_still_to_come_have_their_places(model: DeepseekModel) -> None:
    engine = Engine(model, 4096 * PAGE_SIZE)
    for seed in range(8):
        submit(engine, some_ids(20, seed), greedy(4, n=20))
    most = 0
    while engine.step():
        most = max(most, engine.stats().n_running)
    assert most == 60 <= scheduler.MAX_RUNNING


def test_a_request_that_must_wait_costs_no_prefix(exact_model: DeepseekModel) -> None:
    engine = Engine(exact_model, 8 * PAGE_SIZE)
    answer_of(engine, some_ids(2 * PAGE_SIZE, 1), 2)
    running = submit(engine, some_ids(3 * PAGE_SIZE, 2), greedy(PAGE_SIZE // 2))
    engine.step()
    kept = engine.stats().n_prefix_pages
    waiting = submit(engine, some_ids(7 * PAGE_SIZE, 3), greedy(2))
    engine.step()
    assert engine.n_waiting == 1 and engine.stats().n_prefix_pages == kept
    run_all(engine)
    assert running.is_finished and waiting.is_finished


def test_limits_are_errors(model: DeepseekModel) -> None:
    engine = Engine(model, 2 * PAGE_SIZE)
    with pytest.raises(ContextLengthError, match="128"):
        submit(engine, some_ids(128), greedy(1))
    request = submit(engine, some_ids(120), greedy(50))
    run_all(engine)
    assert (request.finish_reason, len(answer(request))) == ("length", 8)
    with pytest.raises(RequestError, match="n 65"):
        submit(engine, some_ids(1), greedy(1, n=65))
