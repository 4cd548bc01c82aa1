"""A model on several machines computes what it computes on one, bit for bit. The machines here are threads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.engine import scheduler
from deepzig.engine.scheduler import PREFILL_CHUNK
from deepzig.errors import RequestError
from tests.distributed.threads import load_over_threads, wait_until

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
TEXT = "Once upon a time there was a little girl who had a red ball. "


def ids_of(name: str) -> list[int]:
    return np.load(GOLDEN / name / "expected.npz")["ids"].tolist()


@pytest.mark.parametrize("name", ["v3_classic", "v3_yarn", "v2_lite", "v2_full", "moonlight", "v3_fp8"])
def test_logits_are_those_of_one_machine(name: str) -> None:
    """Each layer on a machine of its own."""
    ids, one = ids_of(name), deepzig.load(GOLDEN / name)
    several, _ = load_over_threads(GOLDEN / name, one.config.num_hidden_layers)
    for chunk_size in (1, 16, PREFILL_CHUNK):
        expected = one.logits(ids, chunk_size=chunk_size)
        np.testing.assert_array_equal(several.logits(ids, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("options", [{}, {"precision": "fast"}, {"deterministic": True}, {"cache_dtype": "int8"}])
@pytest.mark.parametrize("n_machines", [2, 5])
def test_every_way_of_computing_is_the_same_on_several(n_machines: int, options: dict[str, object]) -> None:
    """Five machines have one layer of stories each."""
    one = deepzig.load("stories", **options)  # type: ignore[arg-type]
    several, _ = load_over_threads("stories", n_machines, **options)
    ids = one.encode(TEXT * 15).tolist()
    np.testing.assert_array_equal(several.logits(ids), one.logits(ids))
    assert several.generate(ids, GREEDY).token_ids == one.generate(ids, GREEDY).token_ids


@pytest.mark.parametrize("speculation", ["off", "mtp", "ngram"])
def test_many_requests_get_what_one_machine_answers(speculation: str) -> None:
    """Chunks, batches, prefixes that are shared and pages that are copied, drafts, sampling, several choices, beams."""
    one, (several, _) = deepzig.load("stories"), load_over_threads("stories", 3)
    params = replace(GREEDY, speculation=speculation)
    requests = [
        (TEXT, params),
        (TEXT * 50, params),
        (TEXT * 50 + "The ball", params),
        (TEXT, replace(params, temperature=1.0, seed=7, n=3)),
        ("Tom and Sue went to the park.", replace(params, num_beams=3) if speculation == "off" else params),
    ]
    expected = [[choice.token_ids for choice in one.generate(*request).choices] for request in requests]
    together = [several.submit(*request) for request in requests]
    assert [[choice.token_ids for choice in each.result().choices] for each in together] == expected
    again = several.generate(*requests[2])
    assert again.token_ids == expected[2][0] and again.timings.cached_tokens > 100


def test_what_does_not_fit_is_computed_again() -> None:
    """A cache of few pages: sequences give way to each other."""
    one = deepzig.load("stories", deterministic=True)
    page_bytes = 64 * one.model.make_cache(0).bytes_per_token
    several, _ = load_over_threads("stories", 2, cache_bytes=8 * page_bytes, deterministic=True)
    assert several.stats().n_pages == 8
    params = replace(GREEDY, max_tokens=100)
    prompts = [TEXT * 4, TEXT * 5, "A dog. " * 30, "The sun is warm. " * 20]
    together = [several.submit(prompt, params) for prompt in prompts]
    for prompt, generation in zip(prompts, together, strict=True):
        assert generation.result().token_ids == one.generate(prompt, params).token_ids
    assert several.stats().preemptions > 0


def test_a_context_that_is_shifted() -> None:
    page_bytes = 64 * deepzig.load("stories").model.make_cache(0).bytes_per_token
    options = {"context_shift": True, "cache_bytes": 10 * page_bytes}
    one, (several, _) = deepzig.load("stories", **options), load_over_threads("stories", 3, **options)
    params = replace(GREEDY, max_tokens=700)
    expected, found = one.generate(TEXT * 5, params), several.generate(TEXT * 5, params)
    assert found.token_ids == expected.token_ids and found.n_dropped == expected.n_dropped > 0


@pytest.mark.parametrize("speculation", ["off", "mtp"])
def test_chunks_of_a_prompt_go_ahead_while_machines_are_busy(speculation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the rows of a chunk in the middle, and the MTP layer takes them later; of those as many are
    under way as there are machines."""
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 100)
    llm, (second, third) = load_over_threads("stories", 3)
    second.may_go_on.clear()
    ids = llm.encode(TEXT * 50).tolist()[:750]
    params = replace(GREEDY, speculation=speculation)
    generation = llm.submit(ids, params)
    wait_until(lambda: second.asked.count("run") == 3)
    assert not generation.is_finished and third.done.count("run") == 0
    second.may_go_on.set()
    found, expected = generation.result(), deepzig.load("stories").generate(ids, params)
    assert (found.token_ids, found.timings.drafted_tokens) == (expected.token_ids, expected.timings.drafted_tokens)
    assert found.timings.accepted_tokens == expected.timings.accepted_tokens
    assert third.asked.count("run") > 7


def test_kept_prompts_are_restored_on_the_same_split(tmp_path: Path) -> None:
    prompt, cached = TEXT * 20, []
    expected = deepzig.load("stories").generate(prompt, GREEDY).token_ids
    for _ in range(2):
        llm, _ = load_over_threads("stories", 3, prompt_cache=tmp_path)
        with llm:
            result = llm.generate(prompt, GREEDY)
        assert result.token_ids == expected
        cached.append(result.timings.cached_tokens)
    assert cached[0] == 0 and cached[1] > 100
    two, _ = load_over_threads("stories", 2, prompt_cache=tmp_path)
    for llm in (two, deepzig.load("stories", prompt_cache=tmp_path)):
        with llm:
            result = llm.generate(prompt, GREEDY)
        assert (result.token_ids, result.timings.cached_tokens) == (expected, 0)
    assert len(list(tmp_path.iterdir())) == 3


def test_layers_elsewhere_are_not_observed() -> None:
    llm, _ = load_over_threads("stories", 2)
    for observe in (lambda: llm.trace(TEXT), llm.count_experts):
        with pytest.raises(RequestError, match="layers on other machines cannot be observed"):
            observe()
    assert llm.generate(TEXT, GREEDY).token_ids


FORKED = """
import os, sys, deepzig
from tests.distributed.threads import load_over_threads
llm, (machine,) = load_over_threads("stories", 2)
if not os.fork():
    for call in (lambda: llm.generate("The dog"), lambda: llm.logits([5])):
        try:
            call()
        except deepzig.errors.RequestError as error:
            print(error, flush=True)
    llm.close()
    print(machine.has_worker, flush=True)
    os._exit(0)
os.wait()
print(len(llm.generate("The dog", deepzig.SamplingParams(max_tokens=3)).token_ids))
"""


def test_a_fork_is_refused_before_the_model_is_used_too() -> None:
    """What speaks to the machines is the parent's, and so are their workers."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    assert len(lines) == 4 and all("forked" in line for line in lines[:2])
    assert lines[2:] == ["True", "3"]


def test_caches_are_dropped_on_all_machines() -> None:
    llm, (machine,) = load_over_threads("stories", 2)
    for _ in range(3):
        llm.logits([1, 2, 3])
    llm.generate(TEXT, GREEDY)
    assert machine.done.count("make_cache") == 4 and machine.done.count("drop_cache") == 3


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_on_slow_machines(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come, are cancelled, and give way to each other while chunks of their prompts are under way."""
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 100)
    rng = np.random.default_rng(seed)
    one = deepzig.load("stories", deterministic=True)
    page_bytes = 64 * one.model.make_cache(0).bytes_per_token
    several, machines = load_over_threads("stories", 3, cache_bytes=14 * page_bytes, deterministic=True)
    for machine in machines:
        machine.delay = lambda: float(rng.uniform(0, 0.004))
    running = []
    for _ in range(20):
        prompt = rng.integers(5, 4000, rng.integers(1, 400)).tolist()
        params = replace(GREEDY, max_tokens=int(rng.integers(1, 40)), speculation=str(rng.choice(["off", "mtp"])))
        running.append((prompt, params, several.submit(prompt, params)))
        if rng.random() < 0.3:
            running.pop(int(rng.integers(len(running))))[2].cancel()
    for prompt, params, generation in running:
        assert generation.result().token_ids == one.generate(prompt, params).token_ids
    stats = several.stats()
    assert stats.n_held_pages == stats.n_prefix_pages and stats.preemptions > 0
