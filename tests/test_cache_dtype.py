"""The int8 cache: how rows are rounded, that every path through it agrees, and what it costs the bundled model."""

from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig._kernels import ACTIVE
from deepzig.errors import NonFiniteLogitsError, RequestError
from deepzig.evaluate.perplexity import evaluate
from deepzig.model.cache import LatentCache, Rows, to_int8

GOLDEN = Path(__file__).parent / "golden"
TEXT = (
    "Once upon a time there was a little cat. The cat had a red ball. One day the ball rolled under the big tree, and "
    "the cat was sad. A kind dog came and said: I can help you. The dog pushed the ball out, and they played all day."
)


def rows_at(positions: list[int], table: list[int]) -> Rows:
    return Rows(np.array(positions, np.int32), np.zeros(len(positions), np.int32), np.array([table], np.int32), True)


def test_rows_come_back_within_half_a_step() -> None:
    latent = np.random.default_rng(0).standard_normal((70, 40)).astype(np.float32) * 3
    cache = LatentCache(2, 3, 40, "int8")
    cache.write(1, rows_at(list(range(70)), [2, 0]), latent)
    back = cache.read(1, np.array([2, 0], np.int32), 5, 70)
    step = np.abs(latent).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - latent[5:]) <= 0.5001 * step[5:]).all()
    assert not np.array_equal(back, latent[5:])
    cache.copy_page(0, 1)
    np.testing.assert_array_equal(cache.read(1, np.array([2, 1], np.int32), 5, 70), back)


@pytest.mark.filterwarnings("error")
def test_rows_without_a_range() -> None:
    """Zeros, values too small for a scale, NaN and infinity, without a warning of NumPy."""
    rows = np.zeros((5, 4), np.float32)
    rows[1], rows[2, 1], rows[3, 2], rows[4] = 1e-40, np.nan, -np.inf, [-2, 1, 0, 2]
    codes, scales = to_int8(rows)
    assert codes[4].tolist() == [-127, 64, 0, 127]
    back = codes * scales[:, None]
    assert (np.abs(back[:2]) <= 1e-37).all() and np.isnan(back[2:4]).all() and np.isfinite(back[4]).all()


def test_a_token_takes_a_quarter() -> None:
    f32, int8 = (LatentCache(3, 0, 576, dtype).bytes_per_token for dtype in ("f32", "int8"))
    assert (f32, int8) == (3 * 576 * 4, 3 * (576 + 4))


@pytest.mark.parametrize("name", ["v3_classic", "v3_yarn", "v2_lite"])
def test_both_forms_read_the_rounded_rows(name: str) -> None:
    """One token, whose rows both forms round alike: in longer texts last bits decide to which side a value falls."""
    rounded, exact = deepzig.load(GOLDEN / name, cache_dtype="int8"), deepzig.load(GOLDEN / name)
    absorbed, expanded = (rounded.logits([7], attention=form) for form in ("absorbed", "expanded"))
    np.testing.assert_allclose(absorbed, expanded, rtol=0, atol=1e-4)
    assert np.abs(absorbed - exact.logits([7])).max() > 1e-4


@pytest.mark.skipif(ACTIVE["linear"] in ("blas", "reference"), reason="BLAS sums by the shape of the product")
def test_deterministic_bits_do_not_depend_on_chunks_and_threads() -> None:
    one, two = (deepzig.load("stories", n_threads=n, deterministic=True, cache_dtype="int8") for n in (1, 2))
    ids = one.encode(TEXT).tolist()
    whole = one.logits(ids)
    for llm, chunk_size in ((one, 7), (two, 512), (two, 1)):
        np.testing.assert_array_equal(llm.logits(ids, chunk_size=chunk_size), whole)


def test_what_it_costs_the_bundled_model() -> None:
    """docs/quantising.md has the figures of a longer text."""
    f32, int8 = (deepzig.load("stories", cache_dtype=dtype) for dtype in ("f32", "int8"))
    found = evaluate(int8, TEXT, reference=f32)
    assert found.divergence is not None
    assert 0 < found.divergence.mean_kl < 2e-3
    assert found.perplexity == pytest.approx(evaluate(f32, TEXT).perplexity, rel=0.01)


def test_it_goes_through_the_engine() -> None:
    """Answers of several steps, a prefix found again, and a copied page."""
    llm = deepzig.load("stories", cache_dtype="int8", deterministic=True)
    params = deepzig.SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    first, again = (llm.generate(TEXT, params) for _ in range(2))
    assert again.timings.cached_tokens == first.timings.prompt_tokens - 1
    assert first.token_ids == again.token_ids


def test_nan_fails_the_request() -> None:
    llm = deepzig.load(GOLDEN / "v3_new_dialect", cache_dtype="int8")
    norm = llm.model.layers[0].self_attn.kv_a_layernorm
    norm.weight = np.full_like(norm.weight, np.nan)
    with pytest.raises(NonFiniteLogitsError):
        llm.generate([1, 2], deepzig.SamplingParams(max_tokens=2, temperature=0.0))


def test_other_names_are_refused() -> None:
    with pytest.raises(RequestError, match="cache_dtype"):
        deepzig.load("stories", cache_dtype="bf16")
