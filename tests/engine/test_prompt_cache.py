"""The prompt cache: a later run finds what an earlier one computed; a file that is not right is ignored."""

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import deepzig
from deepzig import SamplingParams
from deepzig.checkpoint.reader import SafetensorsFile
from deepzig.engine.prompt_cache import PromptCache, _checksum
from deepzig.engine.scheduler import Scheduler
from deepzig.model.cache import LatentCache

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
VOCABULARY = 200


def some_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 4000, n).tolist()


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    assert path.match("deepzig-prompts-????????????.safetensors")
    return path


LEFT_OPEN = """
import atexit, os, sys, weakref, deepzig
weakref.finalize(sys, print, "others are finalised")
atexit.register(lambda: print("a library ends", os.listdir(sys.argv[1])))
llm = deepzig.load("stories", prompt_cache=sys.argv[1])
llm.generate([5] * 200, deepzig.SamplingParams(max_tokens=1))
"""


def test_the_end_of_the_program_writes_it_while_libraries_work(tmp_path: Path) -> None:
    """The network may need them, as one on several machines needs Ray; even if there was a finalizer before."""
    command = [sys.executable, "-W", "ignore", "-c", LEFT_OPEN, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    assert lines == [f"a library ends ['{only_file(tmp_path).name}']", "others are finalised"]


@pytest.mark.parametrize("cache_dtype", ["f32", "int8"])
def test_a_later_run_finds_the_prompt(tmp_path: Path, cache_dtype: str) -> None:
    options: Any = {"deterministic": True, "cache_dtype": cache_dtype, "prompt_cache": tmp_path / "new" / "folder"}
    with deepzig.load("stories", **options) as llm:
        expected = [llm.generate(some_ids(200, seed), GREEDY).token_ids for seed in range(2)]
    assert only_file(tmp_path / "new" / "folder").is_file()
    with deepzig.load("stories", **options) as llm:
        for seed in range(2):
            again = llm.generate(some_ids(200, seed), GREEDY)
            assert again.timings.cached_tokens == 199 and again.token_ids == expected[seed]
        follow_up = llm.generate([*some_ids(200), *expected[0], 7], GREEDY)
        assert follow_up.timings.cached_tokens == 211
        stats = llm.stats()
        assert stats.n_held_pages == stats.n_prefix_pages


def test_the_folder_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with deepzig.load("stories", prompt_cache="prompts") as llm:
        llm.generate("Once upon a time", SamplingParams(max_tokens=2))
        monkeypatch.chdir("/")
    assert only_file(tmp_path / "prompts").is_file()


def test_only_requests_without_a_tenant_are_kept(tmp_path: Path) -> None:
    with deepzig.load("stories", prompt_cache=tmp_path) as llm:
        llm.submit(some_ids(100), GREEDY, tenant="key").result()
    assert not list(tmp_path.iterdir())


def test_a_run_that_computes_nothing_new_leaves_the_file(tmp_path: Path) -> None:
    for _ in range(2):
        with deepzig.load("stories", prompt_cache=tmp_path) as llm:
            llm.generate(some_ids(100), GREEDY)
    before = only_file(tmp_path).stat().st_ino
    with deepzig.load("stories", prompt_cache=tmp_path):
        pass
    assert only_file(tmp_path).stat().st_ino == before


@pytest.mark.parametrize("other", [{"precision": "fast"}, {"deterministic": True}, {"cache_dtype": "int8"}])
def test_each_arithmetic_has_a_file_of_its_own(tmp_path: Path, other: dict[str, Any]) -> None:
    cached = []
    for options in ({}, other, {}, other):
        with deepzig.load("stories", prompt_cache=tmp_path, **options) as llm:
            cached.append(llm.generate(some_ids(70), GREEDY).timings.cached_tokens)
    assert cached == [0, 0, 69, 69] and len(list(tmp_path.iterdir())) == 2


def test_a_file_of_another_model_is_not_used(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    scheduler, cache = small()
    another = PromptCache(tmp_path, {"model": "another"}, scheduler, cache, VOCABULARY)
    path.rename(another.path)
    with pytest.warns(RuntimeWarning, match="made for another model, 'm'"):
        another.load()
    assert scheduler.prefixes.n_pages == 0


def test_programs_at_the_same_time_lose_nothing_of_each_other(tmp_path: Path) -> None:
    programs = [deepzig.load("stories", prompt_cache=tmp_path) for _ in range(4)]
    for seed, llm in enumerate(programs):
        llm.generate(some_ids(200, seed), GREEDY)
    with ThreadPoolExecutor() as closing:
        list(closing.map(deepzig.LLM.close, programs))
    with deepzig.load("stories", prompt_cache=tmp_path) as llm:
        assert [llm.generate(some_ids(200, seed), GREEDY).timings.cached_tokens for seed in range(4)] == [199] * 4


# ---- the file alone, with a small cache


def small(n_pages: int = 12) -> tuple[Scheduler, LatentCache]:
    cache = LatentCache(2, n_pages, 6)
    return Scheduler(cache, lambda _new, _length: "absorbed", lambda _branch, _n: 0), cache


def prompt_cache(directory: Path, scheduler: Scheduler, cache: LatentCache) -> PromptCache:
    return PromptCache(directory, {"model": "m"}, scheduler, cache, VOCABULARY)


def n_found(scheduler: Scheduler, tokens: list[int]) -> int:
    match = scheduler.prefixes.match("", tokens)
    return len(match.pages) * 64 + match.n_partial


def file_of(directory: Path) -> Path:
    """A file with two texts that share a page."""
    scheduler, cache = small()
    cache.pages[:] = np.random.default_rng(0).standard_normal(cache.pages.shape)
    tokens = [3] * 64 + [4] * 64 + [5] * 10
    pages = [scheduler.pool.take() for _ in range(4)]
    scheduler.prefixes.insert("", tokens, [page for page in pages[:3] if page is not None])
    scheduler.prefixes.insert("", tokens[:64] + [9] * 20, [page for page in (pages[0], pages[3]) if page is not None])
    prompt_cache(directory, scheduler, cache).save()
    return only_file(directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_may_not_be_searched_has_no_file(tmp_path: Path) -> None:
    file_of(tmp_path)
    tmp_path.chmod(0o600)
    try:
        assert restored(tmp_path) == 0
    finally:
        tmp_path.chmod(0o700)


def restored(directory: Path) -> int:
    scheduler, cache = small()
    prompt_cache(directory, scheduler, cache).load()
    assert scheduler.prefixes.n_pages == scheduler.pool.n_pages - scheduler.pool.n_free
    return scheduler.prefixes.n_pages


def test_the_tree_comes_back(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    scheduler, cache = small()
    prompt_cache(tmp_path, scheduler, cache).load()
    assert scheduler.prefixes.n_pages == 4
    rows = load_file(path)["rows"]
    match = scheduler.prefixes.match("", [3] * 64 + [4] * 64 + [5] * 30)
    assert (len(match.pages), match.n_partial) == (2, 10)
    assert n_found(scheduler, [3] * 64 + [9] * 30) == 84
    assert any(np.array_equal(cache.pages[:, match.pages[1]], row) for row in rows)
    assert not list(tmp_path.glob("*.tmp*"))


def test_half_of_the_cache_stays_free(tmp_path: Path) -> None:
    scheduler, cache = small()
    for text in range(10):
        page = scheduler.pool.take()
        assert page is not None
        scheduler.prefixes.insert("", [text] * 64, [page])
    prompt_cache(tmp_path, scheduler, cache).save()
    assert restored(tmp_path) == 6
    scheduler, cache = small()
    prompt_cache(tmp_path, scheduler, cache).load()
    assert [n_found(scheduler, [text] * 64) for text in range(10)] == [0] * 4 + [64] * 6  # the latest


def keep_texts(directory: Path, texts: list[int], n_pages: int) -> None:
    """A run in a cache of n_pages that computes a page of each text, the last one last."""
    scheduler, cache = small(n_pages)
    file = prompt_cache(directory, scheduler, cache)
    file.load()
    for text in texts:
        page = scheduler.pool.take()
        assert page is not None
        cache.pages[:, page] = text
        scheduler.prefixes.insert("", [text] * 64, [page])
    file.save()


def test_a_smaller_cache_takes_nothing_from_the_file_but_what_was_used_first(tmp_path: Path) -> None:
    keep_texts(tmp_path, [1, 2, 3, 4, 5, 6], 12)
    keep_texts(tmp_path, [7], 4)
    arrays = load_file(only_file(tmp_path))
    assert arrays["tokens"][:, 0].tolist() == [7, 6, 5, 4, 3, 2]
    assert arrays["rows"][:, 0, 0, 0].tolist() == [7, 6, 5, 4, 3, 2]


def test_pages_that_are_not_finite_are_left_out_with_what_follows_them(tmp_path: Path) -> None:
    scheduler, cache = small()
    pages = [page for _ in range(5) if (page := scheduler.pool.take()) is not None]
    scheduler.prefixes.insert("", [3] * 64 + [4] * 64 + [5] * 10, pages[:3])
    scheduler.prefixes.insert("", [6] * 64 + [7] * 10, pages[3:])
    cache.pages[1, pages[1], 63, 0] = np.nan
    cache.pages[1, pages[4], 10, 0] = np.inf  # after the last token
    prompt_cache(tmp_path, scheduler, cache).save()
    scheduler, cache = small()
    prompt_cache(tmp_path, scheduler, cache).load()
    assert scheduler.prefixes.n_pages == 3
    assert n_found(scheduler, [3] * 64 + [4] * 64) == 64
    assert n_found(scheduler, [6] * 64 + [7] * 10) == 74


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parents", [-1, 0, 1, 3]),
        ("parents", [-1, 0, 1, -2]),
        ("parents", [-1, 0, 1, 2]),
        ("n_tokens", [64, 64, 10, 0]),
        ("n_tokens", [64, 64, 10, 65]),
        ("tokens", VOCABULARY),
        ("tokens", -1),
        ("rows", np.nan),
    ],
)
def test_impossible_values_are_refused_even_with_a_right_hash(tmp_path: Path, name: str, value: object) -> None:
    path = file_of(tmp_path)
    arrays, metadata = load_file(path), SafetensorsFile(path).metadata
    arrays[name].reshape(-1)[-4:] = value
    save_file(arrays, path, metadata={**metadata, "sha256": _checksum(arrays)})
    with pytest.warns(RuntimeWarning, match="impossible values"):
        assert restored(tmp_path) == 0


@pytest.mark.parametrize("name", ["n_tokens", "parents", "tokens", "rows"])
def test_arrays_without_dimensions_are_refused(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path)
    arrays, metadata = load_file(path), SafetensorsFile(path).metadata
    arrays[name] = np.array(arrays[name].reshape(-1)[0])
    save_file(arrays, path, metadata={**metadata, "sha256": _checksum(arrays)})
    with pytest.warns(RuntimeWarning, match="other arrays"):
        assert restored(tmp_path) == 0


@pytest.mark.parametrize("made_for", ["", "[1]", "{", "[" * 5000, json.dumps({"model": 7}), json.dumps({})])
def test_a_file_for_nothing_known_is_refused(tmp_path: Path, made_for: str) -> None:
    path = file_of(tmp_path)
    save_file(load_file(path), path, metadata={**SafetensorsFile(path).metadata, "made_for": made_for})
    with pytest.warns(RuntimeWarning, match="ignored"):
        assert restored(tmp_path) == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_ignored(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut off, put in: a warning, nothing restored, never an exception."""
    path = file_of(tmp_path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 900) | st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "noise"]))
    if kind == "flip":
        raw[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[place:]
    elif kind == "insert":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        raw[:] = data.draw(st.binary(max_size=200))
    path.write_bytes(raw)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        n_pages = restored(tmp_path)
    # a byte of padding or of white space in the header may change nothing that counts
    assert n_pages == 4 or (n_pages == 0 and [warning.category for warning in found] == [RuntimeWarning])


def test_a_file_that_was_cut_off_is_to_be_deleted(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match="prompt cache ignored: .* is truncated.*; delete it$"):
        assert restored(tmp_path) == 0


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    scheduler, cache = small()
    page = scheduler.pool.take()
    assert page is not None
    scheduler.prefixes.insert("", [1, 2], [page])
    file = prompt_cache(tmp_path / "gone", scheduler, cache)
    (tmp_path / "gone").rmdir()
    with pytest.warns(RuntimeWarning, match="not saved"):
        file.save()
