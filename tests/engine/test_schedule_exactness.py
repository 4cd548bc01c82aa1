"""Exactness: the bits of a request's logits do not depend on what else is served, nor how; on random schedules."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepzig
from deepzig.engine import scheduler
from deepzig.engine.engine import Engine
from deepzig.engine.sampling import SamplingParams
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel

GOLDEN = Path(__file__).parents[1] / "golden"
ROOM = 16 * PAGE_SIZE
FAMILIES = ("v3_classic", "v3_fp8", "v2_lite")


@dataclass(frozen=True)
class Asked:
    """A request of a schedule."""

    text: int  # which of the texts it begins
    n_prompt: int
    max_tokens: int
    arrival: int  # steps before it is submitted
    speculation: str
    draft_tokens: int


asked = st.builds(
    Asked,
    text=st.integers(0, 2),
    n_prompt=st.integers(1, 200),
    max_tokens=st.integers(1, 24),
    arrival=st.integers(0, 30),
    speculation=st.sampled_from(("off", "mtp", "ngram", "auto")),
    draft_tokens=st.integers(1, 3),
)
schedules = st.lists(asked, min_size=1, max_size=6)

_MODELS: dict[tuple[str, int, bool], DeepseekModel] = {}


def model_of(family: str, n_threads: int, deterministic: bool) -> DeepseekModel:
    key = (family, n_threads, deterministic)
    if key not in _MODELS:
        folder = family if family == "stories" else GOLDEN / family
        _MODELS[key] = deepzig.load(folder, n_threads=n_threads, deterministic=deterministic).model
    return _MODELS[key]


def prompt_of(model: DeepseekModel, request: Asked) -> np.ndarray:
    """Texts of few different tokens, so that n-grams recur; the three begin alike."""
    random = np.random.default_rng(7)
    ids = random.integers(0, 12, 300)
    ids[40 + request.text :] = np.random.default_rng(request.text).integers(0, 12, 260 - request.text)
    return (ids[: request.n_prompt] % model.config.vocab_size).astype(np.int32)


def submit(engine: Engine, model: DeepseekModel, each: Asked, tenant: str, speculation: str) -> list[bytes]:
    """The logits of each of the request's tokens: a list that grows with it."""
    params = SamplingParams(
        each.max_tokens, temperature=0.0, top_k=0, top_p=1.0, speculation=speculation, draft_tokens=each.draft_tokens
    )
    request = engine.make_request(prompt_of(model, each), params, frozenset(), tenant=tenant)
    logits: list[bytes] = []
    sampler = request.branches[0].sampler
    sample = sampler.sample

    def record(row: np.ndarray) -> int:
        logits.append(row.tobytes())
        return sample(row)

    sampler.sample = record  # type: ignore[method-assign]
    sampler.is_greedy = False  # so that `sample` is asked
    engine.submit(request)
    return logits


def alone(model: DeepseekModel, each: Asked) -> list[bytes]:
    """Logits of the request by itself: read whole, without guesses."""
    engine = Engine(model, ROOM)
    logits = submit(engine, model, each, "", "off")
    while engine.step():
        pass
    return logits


def run(engine: Engine, model: DeepseekModel, schedule: list[Asked], share: bool) -> list[list[bytes]]:
    """Logits of each request of a schedule. share: prefixes of each other's."""
    logits: list[list[bytes]] = [[] for _ in schedule]
    waiting = set(range(len(schedule)))
    for step in range(10_000):
        for i in sorted(waiting):
            each = schedule[i]
            if each.arrival <= step:
                waiting.remove(i)
                speculation = each.speculation
                if speculation == "mtp" and not model.mtp_layers:
                    speculation = "ngram"
                logits[i] = submit(engine, model, each, "" if share else str(i), speculation)
        if not engine.step() and not waiting:
            return logits
    raise AssertionError("the schedule does not end")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(schedule=schedules, n_threads=st.integers(1, 2))
def test_batches_threads_and_guesses_do_not_change_a_bit(family: str, schedule: list[Asked], n_threads: int) -> None:
    model = model_of(family, n_threads, deterministic=False)
    expected = [alone(model_of(family, 1, deterministic=False), each) for each in schedule]
    assert run(Engine(model, 2 * ROOM), model, schedule, share=False) == expected


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(schedule=schedules, n_threads=st.integers(1, 2), n_pages=st.integers(4, 12), chunk=st.integers(1, 300))
def test_deterministic_bits_survive_chunks_prefixes_and_preemption(
    family: str, schedule: list[Asked], n_threads: int, n_pages: int, chunk: int
) -> None:
    model = model_of(family, n_threads, deterministic=True)
    expected = [alone(model_of(family, 1, deterministic=True), each) for each in schedule]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "PREFILL_CHUNK", chunk)
        assert run(Engine(model, n_pages * PAGE_SIZE), model, schedule, share=True) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None)
@given(schedule=schedules, n_threads=st.integers(1, 2), n_pages=st.integers(4, 12), chunk=st.integers(1, 300))
def test_the_bundled_model_is_exact_too(schedule: list[Asked], n_threads: int, n_pages: int, chunk: int) -> None:
    for deterministic in (False, True):
        model = model_of("stories", n_threads, deterministic)
        expected = [alone(model_of("stories", 1, deterministic), each) for each in schedule]
        with pytest.MonkeyPatch.context() as patch:
            if deterministic:
                patch.setattr(scheduler, "PREFILL_CHUNK", chunk)
            engine = Engine(model, n_pages * PAGE_SIZE if deterministic else 2 * ROOM)
            assert run(engine, model, schedule, share=deterministic) == expected
