"""EngineThread and Generation: one thread serves readers and cancellations of any thread; nobody waits for ever."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.engine import engine_thread
from deepzig.engine.generation import Generation
from deepzig.errors import QueueFullError, RequestError, ResourceError
from deepzig.text.stop_strings import StopMatcher

LONG = SamplingParams(max_tokens=900, temperature=0.0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


@pytest.fixture
def llm() -> Iterator[deepzig.LLM]:
    with deepzig.load("stories") as loaded:
        yield loaded


def ended_within(llm: deepzig.LLM, n_steps: int) -> bool:
    """Whether nothing runs any more after n_steps steps, each of which lets the calls that wait in between."""
    return any(llm.stats().n_running == 0 for _ in range(n_steps))


def test_poll_gives_the_chunks_of_stream(llm: deepzig.LLM) -> None:
    news = threading.Event()
    generation = llm.submit("Once upon a time", SHORT, on_update=news.set)
    chunks = []
    while not generation.is_finished:
        assert news.wait(60)
        news.clear()
        chunks += generation.poll()
    assert chunks[-1].result is not None
    assert [chunk.text for chunk in chunks] == [chunk.text for chunk in llm.stream("Once upon a time", SHORT)]
    assert generation.poll() == []


def test_progress_tells_what_was_read(llm: deepzig.LLM) -> None:
    assert llm.tokenizer is not None
    prompt = llm.tokenizer.encode("Once upon a time there was a little girl") * 10
    llm.generate(prompt, SHORT)
    generation = llm.submit(prompt, SHORT)
    generation.result()
    progress = generation.progress
    assert (progress.queue_position, progress.prompt_tokens) == (0, len(prompt))
    assert progress.prompt_tokens_done == len(prompt) and progress.cached_tokens == len(prompt) - 1


def test_an_interrupted_notify_leaves_nobody_asleep() -> None:
    """Ctrl-C between its two steps leaves a waiter in the queue whose lock is taken again by the time of the next."""
    llm = deepzig.load("stories")
    llm.generate("Once", SHORT)
    left_behind = threading.Lock()
    left_behind.acquire()
    llm._thread._changed._waiters.appendleft(left_behind)  # type: ignore[attr-defined]
    closing = threading.Thread(target=llm.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_cancelling_frees_the_pages_and_ends_the_reader(llm: deepzig.LLM) -> None:
    generation = llm.submit("Once upon a time", LONG)
    next(iter(generation))
    generation.cancel()
    assert ended_within(llm, 2)
    stats = llm.stats()
    assert stats.n_held_pages == stats.n_prefix_pages and stats.finished == {"cancelled": 1}
    with pytest.raises(RequestError, match="cancelled"):
        generation.result()


@pytest.mark.parametrize("n_read", [0, 1])
def test_a_closed_stream_is_cancelled(llm: deepzig.LLM, n_read: int) -> None:
    stream = llm.stream("Once upon a time", LONG)
    for _ in range(n_read):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ended_within(llm, 2)
    assert list(stream) == []


def test_a_stream_that_nobody_holds_is_cancelled(llm: deepzig.LLM) -> None:
    llm.stream("Once upon a time", LONG)
    assert ended_within(llm, 2)


def test_a_thread_that_cannot_be_started(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is refused; later ones, when there are threads again, are served."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResourceError, match="can't start new thread"):
            llm.generate("Once upon a time", SHORT)
    assert len(llm.generate("Once upon a time", SHORT).token_ids) == 20


def test_a_stream_keeps_its_model() -> None:
    chunks = deepzig.load("stories").stream("Once upon a time", SHORT)
    assert sum(len(chunk.token_ids) for chunk in chunks) == 20


@pytest.mark.parametrize("ask", [deepzig.LLM.generate, lambda *given: list(deepzig.LLM.stream(*given))])
def test_an_interruption_cancels_the_request(
    llm: deepzig.LLM, ask: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while its traceback is kept, as notebooks do."""

    def interrupt(*_: object) -> None:
        while not llm.stats().n_running:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        ask(llm, "Once upon a time", LONG)
    assert ended_within(llm, 2) and kept.tb is not None


def test_answers_that_are_complete_keep_no_model() -> None:
    llm = deepzig.load("stories")
    is_alive = weakref.ref(llm)
    read = llm.submit("Once upon a time", SHORT)
    read.result()
    cancelled = llm.submit("Once upon a time", LONG)
    cancelled.cancel()
    while not cancelled.is_finished:
        cancelled.wait()
        cancelled.poll()
    del llm
    assert is_alive() is None and read.is_finished


@pytest.mark.parametrize("params", [SHORT, replace(SHORT, stop="no such text")])
def test_nobody_waits_for_what_has_ended(llm: deepzig.LLM, params: SamplingParams) -> None:
    generation = llm.submit("Once upon a time", params)
    n_chunks = 0
    while not generation.is_finished:
        generation.wait()
        generation.wait(0)  # nothing has been read, but the news is taken
        n_chunks += len(generation.poll())
    generation.wait()
    assert generation.poll() == [] and n_chunks == 20


def test_a_result_can_be_had_again(llm: deepzig.LLM) -> None:
    generation = llm.submit("Once upon a time", SHORT)
    assert len(list(generation)) > 0
    assert generation.result() is generation.result()


def test_a_stop_string_ends_its_choice_only(llm: deepzig.LLM) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, n=4, ignore_eos=True)
    plain = llm.generate("Once upon a time", params)
    stop = plain.choices[2].text[30:36]
    chunks = list(llm.stream("Once upon a time", SamplingParams(**{**vars(params), "stop": (stop,)})))
    result = chunks[-1].result
    assert result is not None and all(chunk.result is None for chunk in chunks[:-1])
    for choice, whole in zip(result.choices, plain.choices, strict=True):
        is_stopped = stop in whole.text
        assert choice.text == whole.text.partition(stop)[0]
        assert choice.finish_reason == ("stop" if is_stopped else "length")
        assert "".join(chunk.text for chunk in chunks if chunk.index == choice.index) == choice.text
    assert result.text == result.choices[0].text


def test_stop_strings_end_answers_that_nobody_reads_yet(llm: deepzig.LLM) -> None:
    first = llm.submit("Tom had a red ball.", replace(LONG, speculation="off"))
    stopped = [
        llm.submit("Once upon a time", replace(LONG, temperature=1.0, seed=seed, stop=".", n=2, speculation="off"))
        for seed in range(3)
    ]
    results = [generation.result() for generation in (first, *stopped)]
    choices = [choice for result in results for choice in result.choices]
    assert {choice.finish_reason for choice in choices[1:]} == {"stop"}
    stats = llm.stats()
    assert stats.answer_tokens == sum(len(choice.token_ids) for choice in choices)
    assert stats.finished == {"length": 1, "stop": 3}


def test_an_error_in_looking_for_stop_strings_ends_its_request_alone(
    llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_matcher: StopMatcher, text: str) -> str:
        raise MemoryError("no memory")

    monkeypatch.setattr(StopMatcher, "push", fail)
    news = threading.Event()
    other = llm.submit("Once upon a time", SHORT)
    bad = llm.submit("Once upon a time", replace(LONG, stop="x"), on_update=news.set)
    while not bad.is_finished:
        assert news.wait(60)
        news.clear()
        try:
            assert bad.poll() == []
        except MemoryError:
            assert bad.is_finished
    for _ in range(2):
        with pytest.raises(MemoryError, match="no memory"):
            bad.result()
    assert len(other.result().token_ids) == 20


def test_threads_are_served_together(llm: deepzig.LLM) -> None:
    prompts = [[5 + i, 6, 7] for i in range(8)]
    expected = [llm.generate(prompt, SHORT).token_ids for prompt in prompts]
    got: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        got[index] = llm.generate(prompts[index], SHORT).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got[i] for i in range(8)] == expected


def test_the_queue_is_bounded(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "MAX_WAITING", 3)
    gate = threading.Event()
    blocker = threading.Thread(target=lambda: llm._thread.call(lambda: gate.wait(60)))
    blocker.start()
    waiting = [llm.submit([5], SHORT) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 requests"):
        llm.submit([5], SHORT)
    gate.set()
    blocker.join()
    assert [len(generation.result().token_ids) for generation in waiting] == [20] * 3


def test_closing_fails_what_is_unfinished(llm: deepzig.LLM) -> None:
    generation = llm.submit("Once upon a time", LONG)
    llm.close()
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        generation.result()
    with pytest.raises(RequestError, match="closed"):
        llm.generate("Once upon a time", SHORT)


def test_closing_frees_the_memory(llm: deepzig.LLM) -> None:
    """At once: a collector that runs later would leave too little to load another model in the same program."""
    parts = [weakref.ref(part) for part in (llm.model, llm._thread.engine._cache)]
    gc.collect()
    gc.disable()
    try:
        generation = llm.submit("Once upon a time", SHORT)
        generation.result()
        llm.close()
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
    for call in (llm.count_experts, lambda: llm.logits([5]), lambda: llm.model):
        with pytest.raises(RequestError, match="closed"):
            call()
    assert llm.stats() == llm.last_stats and llm.stats().finished == {"length": 1}
    assert len(llm.encode("Once")) < llm.n_context <= llm.prompt_room
    assert generation.progress.queue_position == 0


FORKED = """
import os, sys, deepzig
llm = deepzig.load("stories", prompt_cache=sys.argv[1])
short = deepzig.SamplingParams(max_tokens=3)
stream = llm.stream("Once upon a time", short)
next(stream)
if not os.fork():
    for call in (lambda: llm.generate("The dog", short), lambda: llm.logits([5]), llm.stats):
        try:
            call()
        except deepzig.errors.RequestError as error:
            print(error, flush=True)
    stream.close()
    sys.exit()
os.wait()
print(os.listdir(sys.argv[1]), len(llm.generate("The dog", short).token_ids))
"""


def test_a_fork_of_a_model_in_use_is_refused(tmp_path: Path) -> None:
    """Its thread is the parent's, and the prompt cache is for the parent to write."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    assert len(lines) == 4 and all("forked" in line for line in lines[:3])
    assert lines[3] == "[] 3" and list(tmp_path.iterdir())


FORKED_READER = """
import os, threading, deepzig
llm = deepzig.load("stories")
short = deepzig.SamplingParams(max_tokens=3)
done = llm.submit("One day", short)
while not done._request.is_finished:
    done.wait()
held, go = threading.Event(), threading.Event()
threading.Thread(target=llm._thread.call, args=(lambda: (held.set(), go.wait()),)).start()
held.wait()
pending = llm.submit("Tom", short)
if not os.fork():
    for call in (pending.result, pending.poll, lambda: next(iter(pending))):
        try:
            call()
        except deepzig.errors.RequestError as error:
            print(error, flush=True)
    print(len(done.result().token_ids), flush=True)
    os._exit(0)
os.wait()
go.set()
print(len(pending.result().token_ids))
"""


def test_a_fork_cannot_wait_for_an_answer() -> None:
    """The parent computes it. One that had come before can be read in both."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED_READER]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    assert len(lines) == 5 and all("forked" in line for line in lines[:3])
    assert lines[3:] == ["3", "3"]


def test_a_listener_that_raises_ends_its_request_alone(llm: deepzig.LLM) -> None:
    def fail() -> None:
        raise RuntimeError("the event loop is closed")

    bad = llm.submit("Once upon a time", SHORT, on_update=fail)
    assert len(llm.generate("Once upon a time", SHORT).token_ids) == 20
    for _ in range(2):
        with pytest.raises(RuntimeError, match="event loop"):
            bad.result()
    with pytest.raises(RuntimeError, match="event loop"):  # also of one that is waited for from the beginning
        llm.submit("Once upon a time", LONG, on_update=fail).result()


def test_a_listener_that_exits_ends_its_request_alone(llm: deepzig.LLM) -> None:
    with pytest.raises(SystemExit):
        llm.submit("Once upon a time", SHORT, on_update=sys.exit).result()
    assert len(llm.generate("Once upon a time", SHORT).token_ids) == 20


def test_a_listener_may_call_the_model(llm: deepzig.LLM) -> None:
    running: list[int] = []
    llm.submit("Once upon a time", SHORT, on_update=lambda: running.append(llm.stats().n_running)).result()
    assert running and running[-1] == 0


def test_a_defect_in_a_step_reaches_every_reader(llm: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise MemoryError("no memory")

    llm.generate("Once upon a time", SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "forward_ahead", fail)
        with pytest.raises(MemoryError, match="no memory"):
            llm.generate("Once upon a time", SHORT)
    after = llm.generate("Once upon a time", SHORT)
    assert len(after.token_ids) == 20
    assert after.timings.cached_tokens == 0, "what the failed step has left is used"
    stats = llm.stats()
    assert stats.n_held_pages == stats.n_prefix_pages


class OnlyEven:
    """Even tokens only, at most `n`."""

    def __init__(self, n: int, vocab_size: int) -> None:
        self.left, self.vocab_size = n, vocab_size

    @property
    def is_complete(self) -> bool:
        return self.left == 0

    def allowed(self) -> np.ndarray:
        return np.arange(self.vocab_size) % 2 == 0

    def accept(self, token: int) -> None:
        assert token % 2 == 0
        self.left -= 1

    def copy(self) -> "OnlyEven":
        return OnlyEven(self.left, self.vocab_size)


def test_a_constraint_holds_for_every_choice(llm: deepzig.LLM) -> None:
    constraint = OnlyEven(7, llm.config.vocab_size)
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=1, n=3, ignore_eos=True)
    result = llm.submit("Once upon a time", params, constraint=constraint).result()
    assert [len(choice.token_ids) for choice in result.choices] == [7, 7, 7]
    assert all(token % 2 == 0 for choice in result.choices for token in choice.token_ids)
    assert {choice.finish_reason for choice in result.choices} == {"stop"}
    impossible = OnlyEven(7, llm.config.vocab_size)
    impossible.allowed = lambda: np.zeros(llm.config.vocab_size, bool)  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="allows no token"):
        llm.submit("Once upon a time", params, constraint=impossible).result()


class Panic(BaseException):
    """What a library in Rust raises when it breaks down."""


class Broken(OnlyEven):
    """Cannot be copied, or cannot say whether it is complete."""

    def __init__(self, vocab_size: int, part: str) -> None:
        super().__init__(7, vocab_size)
        self.part = part

    @property
    def is_complete(self) -> bool:
        if self.part == "is_complete":
            raise Panic("broken")
        return False

    def copy(self) -> "OnlyEven":
        raise Panic("broken")


@pytest.mark.parametrize(("part", "n"), [("copy", 2), ("is_complete", 1)])
def test_a_broken_constraint_ends_its_request_alone(llm: deepzig.LLM, part: str, n: int) -> None:
    other = llm.submit("Once upon a time", SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True))
    params = SamplingParams(max_tokens=20, n=n, ignore_eos=True)
    broken = llm.submit("Once upon a time", params, constraint=Broken(llm.config.vocab_size, part))
    with pytest.raises(Panic, match="broken"):
        broken.result()
    assert len(other.result().token_ids) == 200
