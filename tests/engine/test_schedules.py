"""Random submissions, cancellations, closings of branches and steps in a cache that is too small for them.

No page leaks, and every request that was not cancelled gets the answer that it gets alone. `make test` draws 320 rules,
`make test-slow` 10,000; a rule is a submission, a cancellation, or up to 30 steps of the engine.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import deepzig
from deepzig.engine.engine import Engine
from deepzig.engine.request import Request
from deepzig.engine.sampling import SamplingParams
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel

N_PAGES = 5
NO_EOS: frozenset[int] = frozenset()

_MODELS: list[DeepseekModel] = []
_ALONE: dict[tuple[int, int], list[int]] = {}


def model() -> DeepseekModel:
    if not _MODELS:
        folder = Path(__file__).parents[1] / "golden" / "v3_classic"
        _MODELS.append(deepzig.load(folder, n_threads=1, deterministic=True).model)
    return _MODELS[0]


def prompt(text: int, n_prompt: int) -> np.ndarray:
    return np.random.default_rng(text).integers(0, 150, 250)[:n_prompt].astype(np.int32)


def params(max_tokens: int, n: int, speculation: str) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=0.0, top_k=0, top_p=1.0, n=n, speculation=speculation)


def searched(text: int, n_prompt: int, max_tokens: int) -> list[list[int]]:
    """What two beams find after a prompt."""
    engine = Engine(model(), 6 * PAGE_SIZE)
    request = engine.make_request(prompt(text, n_prompt), beams(max_tokens), NO_EOS)
    engine.submit(request)
    while engine.step():
        pass
    return answers(request)


def beams(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=0.0, top_k=0, top_p=1.0, n=2, num_beams=2)


def answers(request: Request) -> list[list[int]]:
    return [[event.token for event in request.events if event.index == index] for index in range(request.params.n)]


def alone(text: int, n_prompt: int) -> list[int]:
    """The first 60 tokens after a prompt, computed once."""
    key = (text, n_prompt)
    if key not in _ALONE:
        engine = Engine(model(), 6 * PAGE_SIZE)
        request = engine.make_request(prompt(text, n_prompt), params(60, 1, "off"), NO_EOS)
        engine.submit(request)
        while engine.step():
            pass
        _ALONE[key] = [event.token for event in request.events]
    return _ALONE[key]


class Schedules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[Request, int]] = []  # and which text it begins
        self.heard: Counter[int] = Counter()  # calls of on_update

    @initialize()
    def start(self) -> None:
        self.engine = Engine(model(), N_PAGES * PAGE_SIZE)

    @rule(
        n_prompt=st.integers(1, 250),
        max_tokens=st.integers(1, 60),
        text=st.integers(0, 2),
        tenant=st.sampled_from("ab"),
        priority=st.integers(0, 1),
        n=st.integers(1, 3),
        speculation=st.sampled_from(("off", "mtp", "ngram", "auto")),
    )
    def submit(
        self, n_prompt: int, max_tokens: int, text: int, tenant: str, priority: int, n: int, speculation: str
    ) -> None:
        request = self.engine.make_request(
            prompt(text, n_prompt), params(max_tokens, n, speculation), NO_EOS, tenant=tenant, priority=priority
        )
        number = len(self.requests)
        request.on_update = lambda: self.heard.update([number])
        self.engine.submit(request)
        self.requests.append((request, text))

    @rule(
        n_prompt=st.integers(1, 80), max_tokens=st.integers(1, 40), text=st.integers(0, 2), priority=st.integers(0, 1)
    )
    def search(self, n_prompt: int, max_tokens: int, text: int, priority: int) -> None:
        request = self.engine.make_request(prompt(text, n_prompt), beams(max_tokens), NO_EOS, priority=priority)
        number = len(self.requests)
        request.on_update = lambda: self.heard.update([number])
        self.engine.submit(request)
        self.requests.append((request, text))

    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        if self.requests:
            request, _ = self.requests[which % len(self.requests)]
            self.engine.cancel(request)
            assert request.is_finished and not any(branch.pages for branch in request.branches)

    @rule(which=st.integers(0, 100), index=st.integers(0, 2))
    def stop_branch(self, which: int, index: int) -> None:
        if self.requests:
            self.engine.cancel(self.requests[which % len(self.requests)][0], index, "stop")

    @rule(n_steps=st.integers(1, 30))
    def step(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self.engine.step()
            self.engine.notify()

    @invariant()
    def pages_have_holders(self) -> None:
        if not hasattr(self, "engine"):
            return
        held = {page for request, _ in self.requests for branch in request.branches for page in branch.pages}
        stats = self.engine.stats()
        assert len(held) <= stats.n_held_pages <= min(N_PAGES, len(held) + stats.n_prefix_pages)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.step():
            pass
        self.engine.notify()
        stats = self.engine.stats()
        assert (stats.n_waiting, stats.n_running, stats.n_held_pages) == (0, 0, stats.n_prefix_pages)
        assert sum(stats.finished.values()) == len(self.requests)
        for number, (request, text) in enumerate(self.requests):
            assert request.is_finished and request.error is None and self.heard[number] > 0
            if request.beam_search is not None:
                found = searched(text, request.n_prompt, request.params.max_tokens)
                assert answers(request) == (found if request.finish_reason == "length" else [[], []])
                continue
            expected = alone(text, request.n_prompt)
            for branch in request.branches:
                answer = [event.token for event in request.events if event.index == branch.index]
                room = N_PAGES * PAGE_SIZE - request.n_prompt
                if request.finish_reason == "length" and len(request.branches) == 1:
                    assert len(answer) == min(request.params.max_tokens, room)
                assert answer == expected[: len(answer)]


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=20, stateful_step_count=16, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(3000)
class TestManySchedules(Schedules.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
