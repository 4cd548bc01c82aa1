"""Texts past the context: the oldest tokens go, k_pe is turned as if it had been computed there, latents stay."""

from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.config import ModelConfig
from deepzig.engine.context_shift import ContextShift
from deepzig.engine.engine import Engine
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.errors import ContextLengthError, RequestError
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel

GOLDEN = Path(__file__).parents[1] / "golden"
CONTEXT = 1024  # of stories


def some_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 4000, n).tolist()


def greedy(max_tokens: int, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shifting() -> deepzig.LLM:
    return deepzig.load("stories", context_shift=True, deterministic=True)


@pytest.mark.parametrize("name", ["v3_classic", "v3_yarn", "v3_yarn_mscale", "v3_sharded", "v2_lite"])
@pytest.mark.parametrize("cache_dtype", ["f32", "int8"])
def test_turned_keys_are_those_computed_at_the_new_place(name: str, cache_dtype: str) -> None:
    """In the first layer, whose rows depend on token and position alone: of both rope layouts, with YaRN or not."""
    config = ModelConfig.from_directory(GOLDEN / name)
    weights = load_weights(open_checkpoint(GOLDEN / name), config)
    model = DeepseekModel(config, weights, n_threads=1, cache_dtype=cache_dtype)
    tokens = np.resize(np.load(GOLDEN / name / "expected.npz")["ids"], 4 * PAGE_SIZE).astype(np.int32)
    old, new = model.make_cache(len(tokens)), model.make_cache(len(tokens))
    list(forward_chunks(model, tokens, old))
    list(forward_chunks(model, np.concatenate([tokens[:PAGE_SIZE], tokens[3 * PAGE_SIZE :]]), new))
    before = old.read(0, np.array([3], np.int32), 0, PAGE_SIZE)
    model.shift_pages(old, [3], 3 * PAGE_SIZE, PAGE_SIZE)
    turned, computed = (
        old.read(0, np.array([3], np.int32), 0, PAGE_SIZE),
        new.read(0, np.array([1], np.int32), 0, PAGE_SIZE),
    )
    step = np.abs(computed).max(axis=1, keepdims=True) / 127
    # of a pair by half a step each, then turned: sqrt(2) / 2; of the turned row and of the computed one: half each
    rounding = 1.75 * step if cache_dtype == "int8" else 0
    assert (np.abs(turned - computed) <= rounding + 2e-6).all()
    rank = config.kv_lora_rank
    assert np.abs(before[:, rank:] - computed[:, rank:]).max() > 0.05
    if cache_dtype == "f32":
        np.testing.assert_array_equal(turned[:, :rank], before[:, :rank])


def test_turning_is_exact_at_far_positions() -> None:
    """By the very angles of the tables: no error grows with the position."""
    config = ModelConfig.from_directory(GOLDEN / "v3_yarn")
    model = DeepseekModel(config, load_weights(open_checkpoint(GOLDEN / "v3_yarn"), config), n_threads=1)
    rotary = model._rotary
    old, new = np.array([150_000, 163_839], np.int32), np.array([70_000, 83_839], np.int32)
    (old_cos, old_sin), (new_cos, new_sin) = rotary.cos_sin(old), rotary.cos_sin(new)
    cos, sin = rotary.rotation(old, new)
    np.testing.assert_allclose(old_cos * cos - old_sin * sin, new_cos, rtol=0, atol=3e-7)
    np.testing.assert_allclose(old_sin * cos + old_cos * sin, new_sin, rtol=0, atol=3e-7)


def test_an_answer_goes_on_past_the_context(shifting: deepzig.LLM) -> None:
    prompt = some_ids(960)
    result = shifting.generate(prompt, greedy(520))
    assert (len(result.token_ids), result.finish_reason) == (520, "length")
    assert result.n_dropped == 2 * 7 * PAGE_SIZE  # 1480 tokens: half of what follows the first page, twice
    plain = deepzig.load("stories", deterministic=True).generate(prompt, greedy(520))
    assert (len(plain.token_ids), plain.n_dropped, plain.finish_reason) == (CONTEXT - 960, 0, "length")
    assert result.token_ids[: len(plain.token_ids)] == plain.token_ids


def test_batch_speculation_and_n_do_not_change_a_shifted_text(shifting: deepzig.LLM) -> None:
    prompt = some_ids(1000)
    alone = shifting.generate(prompt, greedy(60, speculation="off")).token_ids
    together = [shifting.submit(prompt, greedy(60, speculation=kind, n=2)) for kind in ("mtp", "ngram", "off")]
    for generation in together:
        result = generation.result()
        assert [choice.token_ids for choice in result.choices] == [alone, alone]
        assert result.n_dropped == 7 * PAGE_SIZE


def test_prefixes_stay_what_they_were(shifting: deepzig.LLM) -> None:
    """The pages that a shifted text shares with the tree are copied, not turned."""
    prompt = some_ids(1000, 3)
    first = shifting.generate(prompt, greedy(20)).token_ids
    shifting.generate(prompt, greedy(200))
    again = shifting.generate(prompt, greedy(20))
    assert again.timings.cached_tokens >= 999 - PAGE_SIZE
    assert again.token_ids == first
    stats = shifting.stats()
    assert stats.n_held_pages == stats.n_prefix_pages


def test_a_long_prompt_loses_its_oldest_tokens(shifting: deepzig.LLM) -> None:
    prompt = some_ids(1500, 4)
    result = shifting.generate(prompt, greedy(10))
    assert (result.n_dropped, result.timings.prompt_tokens) == (2 * 448, 1500 - 896)
    assert result.token_ids == shifting.generate([*prompt[:64], *prompt[64 + 896 :]], greedy(10)).token_ids
    longer = shifting.generate([*prompt, *result.token_ids, 7], greedy(10))
    assert longer.n_dropped == 896 and longer.timings.cached_tokens == 1500 - 896 + 9  # the next turn finds this one


def test_the_cut_leaves_room() -> None:
    shift = ContextShift(1024)
    assert shift.without_oldest(range(1023)) == list(range(1023))
    for n_tokens in (1024, 1471, 1472, 5000):
        cut = shift.without_oldest(range(n_tokens))
        assert 1024 - 448 <= len(cut) < 1024
        assert cut[:64] == list(range(64)) and cut[-1] == n_tokens - 1 and (n_tokens - len(cut)) % 448 == 0


def test_a_full_cache_makes_shifted_texts_wait_not_fail() -> None:
    model = deepzig.load("stories").model
    engine = Engine(model, CONTEXT + 6 * PAGE_SIZE, context_shift=True)
    params = SamplingParams(max_tokens=300, temperature=0.0, top_k=0, top_p=1.0, n=2)
    request = engine.make_request(np.array(some_ids(900), np.int32), params, frozenset())
    engine.submit(request)
    while engine.step():
        pass
    assert request.error is None and request.n_dropped >= 448
    assert [len(branch.tokens) + branch.n_dropped for branch in request.branches] == [1200, 1200]


def test_without_it_a_long_prompt_is_an_error(shifting: deepzig.LLM) -> None:
    with pytest.raises(ContextLengthError, match=str(CONTEXT)):
        deepzig.load("stories").generate(some_ids(CONTEXT), greedy(1))
    with pytest.raises(ContextLengthError, match=str(CONTEXT)):  # beams do not shift
        shifting.generate(some_ids(CONTEXT), greedy(1, num_beams=2))
    with pytest.raises(RequestError, match="too small"):
        ContextShift(2 * PAGE_SIZE)


def test_texts_may_be_many_contexts_long_but_not_endless(shifting: deepzig.LLM) -> None:
    assert len(shifting.encode("cat " * 10 * CONTEXT)) > 10 * CONTEXT
    with pytest.raises(ContextLengthError, match=r"^the prompt is too long: it has 3000000 bytes"):
        shifting.encode("a" * 3_000_000)
