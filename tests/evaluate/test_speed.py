"""Speed of a model: what is submitted to the engine, what is refused, and that nothing is left behind."""

from collections.abc import Iterator
from typing import Any

import pytest

import deepzig
from deepzig.errors import RequestError
from deepzig.evaluate.read_speed import read_bandwidth
from deepzig.evaluate.speed import SpeedTest, check_room, measure
from deepzig.evaluate.speed_report import SpeedRun


@pytest.fixture(scope="module")
def llm() -> Iterator[deepzig.LLM]:
    with deepzig.load("stories", cache_bytes=4 << 20) as model:
        yield model


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (SpeedTest("prompt", 512), "pp512"),
        (SpeedTest("decode", 64, depth=4096), "tg64 @4096"),
        (SpeedTest("decode", 8, depth=16, concurrency=4), "tg8 @16 x4"),
    ],
)
def test_names(test: SpeedTest, name: str) -> None:
    assert test.name == name


@pytest.mark.parametrize("wrong", [{"n_tokens": 0}, {"depth": -1}, {"concurrency": 0}, {"concurrency": 65}])
def test_what_cannot_be_measured_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="cannot be"):
        SpeedTest(**{"kind": "decode", "n_tokens": 8, **wrong})  # type: ignore[arg-type]


def test_samples_come_test_by_test(llm: deepzig.LLM) -> None:
    tests = [SpeedTest("prompt", 8), SpeedTest("decode", 4, concurrency=2)]
    found = list(measure(llm, tests, 2))
    assert [test for test, _ in found] == [tests[0]] * 3 + [tests[1]] * 3
    assert [rate is None for _, rate in found] == [True, False, False] * 2
    assert all(rate > 0 for _, rate in found if rate is not None)


def submitted(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch, test: SpeedTest) -> list[tuple[Any, Any, Any]]:
    """Prompt, parameters and timings of each request of a test's two runs, after its warm-up."""
    seen: list[tuple[Any, Any, Any]] = []
    submit = llm.submit
    with monkeypatch.context() as patch:
        patch.setattr(llm, "submit", lambda *given: seen.append((*given, submit(*given))) or seen[-1][2])
        samples = measure(llm, [test], 2)
        next(samples)
        n_warm_up = len(seen)
        list(samples)
    assert n_warm_up == test.concurrency
    return [(prompt, params, generation.timings) for prompt, params, generation in seen[n_warm_up:]]


def test_a_prompt_is_read_after_its_context(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = submitted(llm, monkeypatch, SpeedTest("prompt", 24, depth=100, concurrency=2))
    assert len(requests) == 4
    for prompt, params, timings in requests:
        assert len(prompt) == 124 and params.max_tokens == 1
        assert timings.cached_tokens == 100
    contexts = {tuple(prompt[:100]) for prompt, _, _ in requests}
    assert len(contexts) == 2  # each request has its own, in both runs
    assert len({tuple(prompt[100:]) for prompt, _, _ in requests}) == 4  # and new tokens


def test_an_answer_follows_its_context(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = submitted(llm, monkeypatch, SpeedTest("decode", 6, depth=70))
    assert [len(prompt) for prompt, _, _ in requests] == [71, 71]
    for _, params, timings in requests:
        assert timings.cached_tokens == 70 and timings.decode_tokens == 6
        assert params.temperature == 0 and params.ignore_eos and params.speculation == "off"


def test_room_is_looked_at_before_anything_runs(llm: deepzig.LLM) -> None:
    fits = SpeedTest("decode", 64)
    with pytest.raises(RequestError, match="context holds 1024"):
        next(measure(llm, [fits, SpeedTest("prompt", 1024)], 1))
    check_room(llm, [SpeedTest("prompt", 1022)])
    with pytest.raises(RequestError, match="cache-bytes"):
        check_room(llm, [SpeedTest("decode", 64, depth=900, concurrency=64)])


def test_a_run_that_is_interrupted_leaves_nothing_running(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = measure(llm, [SpeedTest("decode", 900, concurrency=2)], 1)
    next(samples)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deepzig.engine.generation.Generation.result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(samples)
    done = llm.generate([5, 6, 7], deepzig.SamplingParams(max_tokens=2))
    assert done.token_ids and llm.stats().n_running == llm.stats().n_waiting == 0
    assert llm.stats().finished["cancelled"] == 2


def test_a_report_takes_the_better_bandwidth(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([5e9, 7e9])
    monkeypatch.setattr("deepzig.evaluate.speed_report.read_bandwidth", lambda n_threads: next(measured))
    run = SpeedRun(llm, {"cache_dtype": "f32"})
    alone, together = SpeedTest("decode", 8, depth=100), SpeedTest("decode", 8, depth=100, concurrency=2)
    run.samples |= {SpeedTest("prompt", 8): [3.0], alone: [100.0, 200.0], together: [4.0]}
    early, late = run.report(is_complete=False), run.finish()
    assert not early.is_complete and early.beside == {"read_bandwidth": 5e9}
    assert late.is_complete and late.beside == {"read_bandwidth": 7e9}
    shares = [figure.details.get("share_of_read") for figure in late.figures]
    assert [share is None for share in shares] == [True, False, True]
    assert shares[1] == pytest.approx(150.0 * late.figures[1].details["bytes_per_token"] / 7e9)


def test_the_memory_is_measured(llm: deepzig.LLM) -> None:
    assert SpeedRun(llm, {}).report(is_complete=False).beside["read_bandwidth"] > 0


@pytest.mark.parametrize("room", [1, 1 << 20])
def test_bandwidth_is_measured_in_whatever_room_there_is(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr("deepzig.evaluate.read_speed.allocatable_memory", lambda: room)
    monkeypatch.setattr("deepzig.evaluate.read_speed.BUDGET_S", 0.0)
    assert read_bandwidth(1) > 0
