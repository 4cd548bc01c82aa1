"""A machine that is lost costs the answers that were being computed; the next request has a new worker."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.distributed.pipeline import PipelineCache
from deepzig.distributed.worker import MachineFacts, Worker
from deepzig.engine import scheduler
from deepzig.errors import ClusterError, RequestError, ResourceError
from tests.distributed.threads import ThreadMachine, load_over_threads
from tests.server.conftest import serving

GREEDY = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=900)
TEXT = "Once upon a time there was a little girl who had a red ball. "


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return deepzig.load("stories").generate(TEXT, GREEDY).token_ids


@pytest.mark.parametrize("place", [0, 1])
def test_lost_while_decoding(place: int, expected: list[int]) -> None:
    llm, machines = load_over_threads("stories", 3)
    llm.generate(TEXT, GREEDY)
    generations = [llm.submit(text, LONG) for text in (TEXT, "A dog")]
    stream = iter(generations[0])
    next(stream)
    machines[place].lose()
    for generation in generations:
        with pytest.raises(ClusterError, match=f"machine {place + 2} is lost"):
            generation.result()
    after = llm.generate(TEXT, GREEDY)
    assert after.token_ids == expected
    assert after.timings.cached_tokens == 0, "what the lost machine had is used again"
    assert [machine.n_workers for machine in machines] == [2 - place, 1 + place]


@pytest.mark.parametrize("method", ["run", "copy_page"])
def test_lost_while_a_prompt_is_read(method: str, monkeypatch: pytest.MonkeyPatch, expected: list[int]) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 100)
    llm, (machine, _) = load_over_threads("stories", 3)
    llm.generate(TEXT * 10, GREEDY)
    machine.lost_at = method
    with pytest.raises(ClusterError, match="machine 2 is lost"):
        llm.generate(TEXT * 40, replace(GREEDY, speculation="off"))
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_lost_while_nothing_is_computed(expected: list[int]) -> None:
    """The first request meets the loss, the second has a machine again."""
    llm, (machine,) = load_over_threads("stories", 2)
    assert llm.generate(TEXT, GREEDY).token_ids == expected
    machine.lose()
    with pytest.raises(ClusterError, match="machine 2 is lost"):
        llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_nobody_to_replace_it(expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    llm, (machine, _) = load_over_threads("stories", 3)
    machine.lose()
    with pytest.raises(ClusterError, match="machine 2 is lost"):
        llm.generate(TEXT, GREEDY)

    def find_nobody(self: ThreadMachine) -> None:
        self.dismiss()
        raise ClusterError("too few machines")

    with monkeypatch.context() as patched:
        patched.setattr(ThreadMachine, "replace_worker", find_nobody)
        for _ in range(2):
            with pytest.raises(ClusterError, match="too few machines"):
                llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_lost_again_while_it_is_replaced(expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    llm, (machine,) = load_over_threads("stories", 2)
    machine.lose()
    replace_worker = ThreadMachine.replace_worker

    def find_a_weak_one(self: ThreadMachine) -> None:
        replace_worker(self)
        self.lost_at = "make_cache"

    with monkeypatch.context() as patched:
        patched.setattr(ThreadMachine, "replace_worker", find_a_weak_one)
        for _ in range(3):
            with pytest.raises(ClusterError, match="machine 2 is lost"):
                llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_a_text_that_another_caller_computes_hears_of_the_loss(expected: list[int]) -> None:
    """The call that meets the loss is not the request's: its rows are gone all the same, and not computed with."""
    llm, (machine,) = load_over_threads("stories", 2)
    generation = llm.submit(TEXT, LONG)
    stream = iter(generation)
    next(stream)

    def lose_and_compute() -> None:
        machine.lose()
        with pytest.raises(ClusterError, match="machine 2 is lost"):
            llm.logits([1, 2, 3])

    llm._thread.call(lose_and_compute)
    with pytest.raises(ClusterError, match="a machine failed, and what it had computed of this text is lost"):
        generation.result()
    np.testing.assert_array_equal(llm.logits([1, 2, 3]), deepzig.load("stories").logits([1, 2, 3]))
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_a_cache_without_room_is_heard_of_once(monkeypatch: pytest.MonkeyPatch, expected: list[int]) -> None:
    """Dropping it, in the midst of others' calls, is no error."""
    llm, _ = load_over_threads("stories", 2)
    llm.generate(TEXT, GREEDY)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "make_cache", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError, match="no room"):
            llm.logits([1, 2, 3])
    gc.collect()
    with pytest.raises(ClusterError, match="what it had computed of this text"):
        llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_pages_of_a_text_that_cannot_be_copied_are_free_again(expected: list[int]) -> None:
    """The copy of a page is where the request hears of a loss that another caller met."""
    llm, (machine,) = load_over_threads("stories", 2)
    ids = llm.encode(TEXT).tolist()
    llm.generate(ids, GREEDY)
    machine.lose()
    with pytest.raises(ClusterError, match="machine 2 is lost"):
        llm.logits([1, 2, 3])
    with pytest.raises(ClusterError, match="what it had computed of this text"):
        llm.generate([*ids, 7], GREEDY)
    assert llm.stats().n_held_pages == 0
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_pages_that_cannot_be_unshared_are_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices of one prompt share its last page until each writes to it."""
    llm, _ = load_over_threads("stories", 2)

    def fail(*_: object) -> None:
        raise ClusterError("machine 2 is lost")

    with monkeypatch.context() as patched:
        patched.setattr(PipelineCache, "copy_page", fail)
        with pytest.raises(ClusterError, match="machine 2 is lost"):
            llm.generate(TEXT, replace(GREEDY, temperature=1.0, n=3))
    assert llm.stats().n_held_pages == 0


def test_a_worker_that_fails_is_heard_of(monkeypatch: pytest.MonkeyPatch, expected: list[int]) -> None:
    """Not a loss: its error reaches the request, and the worker goes on."""
    llm, (machine,) = load_over_threads("stories", 2)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "copy_page", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        llm.generate(TEXT, GREEDY)
        with pytest.raises(MemoryError, match="no room"):
            llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected
    assert machine.n_workers == 1


DIFFERING = pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"version": "9.9"}, r"machine 2 has deepzig 9\.9, this machine \d.*; install the same on both"),
        ({"model_hash": "other"}, "machine 2 has another model at that path; copy the same files to it"),
    ],
)


@DIFFERING
def test_machines_that_differ_are_refused(fact: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Worker.facts
    monkeypatch.setattr(Worker, "facts", lambda self: replace(facts(self), **fact))
    with pytest.raises(ClusterError, match=message):
        load_over_threads("stories", 2)


@DIFFERING
def test_a_machine_that_differs_replaces_none(
    fact: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, expected: list[int]
) -> None:
    llm, (machine,) = load_over_threads("stories", 2)
    machine.lose()
    with pytest.raises(ClusterError, match="machine 2 is lost"):
        llm.generate(TEXT, GREEDY)
    facts = Worker.facts
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "facts", lambda self: replace(facts(self), **fact))
        for _ in range(2):
            with pytest.raises(ClusterError, match=message):
                llm.generate(TEXT, GREEDY)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_a_machine_without_memory_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "facts", lambda self: _facts_of_little(self, 10_000_000))
    with pytest.raises(ResourceError, match=r"^machine 2: the model needs .* 10\.0 MB are free for it"):
        load_over_threads("stories", 2)


def test_the_cache_fits_the_smallest_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "facts", lambda self: _facts_of_little(self, 80_000_000))
    llm, _ = load_over_threads("stories", 2)
    per_token = deepzig.load("stories").model.make_cache(0).bytes_per_token
    assert 0 < llm.stats().n_pages * 64 * per_token // 7 < 20_000_000, "a page of a layer of seven, a quarter of 80 MB"


def _facts_of_little(worker: Worker, memory: int) -> MachineFacts:
    return replace(_FACTS(worker), available=memory, allocatable=memory)


_FACTS = Worker.facts


def test_more_machines_than_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="n_machines 6 is above the 5 layers of the model"):
        load_over_threads("stories", 6)


def test_lost_before_prompts_are_kept(tmp_path: Path) -> None:
    """Closing warns, and lets the other machines go."""
    llm, machines = load_over_threads("stories", 3, prompt_cache=tmp_path)
    llm.generate(TEXT * 10, GREEDY)
    machines[0].lose()
    with pytest.warns(RuntimeWarning, match="prompt cache not saved: machine 2 is lost"):
        llm.close()
    assert not any(machine.has_worker for machine in machines) and not list(tmp_path.iterdir())


def test_over_http_the_client_may_come_again(expected: list[int]) -> None:
    llm, (machine,) = load_over_threads("stories", 2)
    body = {"prompt": TEXT, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    with serving(llm) as server, server.http() as http:
        machine.lose()
        reply = http.post("/v1/completions", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "machine_lost")
        assert "machine 2 is lost" in reply.json()["error"]["message"] and int(reply.headers["retry-after"]) > 0
        assert llm.tokenizer is not None
        again = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert again.strip() == llm.tokenizer.decode(expected).strip()
