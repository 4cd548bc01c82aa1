"""The kernel mla_prefill, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/mla_prefill.py`."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from deepzig._kernels import DECODING, EXACT, FAST, REGISTRY

from . import agreement
from .agreement import every_implementation, every_implementation_but
from .refusals import as_float64, check_refuses, one_more, read_only, wrong_arguments, wrong_floats


def attend(
    function: Callable[..., None],
    q: np.ndarray,
    kv: np.ndarray,
    k_pe: np.ndarray,
    first_query: int,
    tile: int,
    n_threads: int = 2,
) -> np.ndarray:
    """f32 (T, H, V), divided: all keys up to each query, `tile` at a time; softmax_scale 0.1."""
    n_rows, n_heads, width = q.shape
    value_dim = kv.shape[2] - width + k_pe.shape[1]
    running_max = np.full((n_rows, n_heads), -np.inf, np.float32)
    running_sum = np.zeros((n_rows, n_heads), np.float32)
    out = np.zeros((n_rows, n_heads, value_dim), np.float32)
    for key in range(0, len(kv), tile):
        tiles = kv[key : key + tile], k_pe[key : key + tile]
        function(q, *tiles, first_query, key, 0.1, running_max, running_sum, out, n_threads=n_threads)
    return out / running_sum[:, :, None]


def inputs(
    rng: np.random.Generator, n_rows: int, n_keys: int, n_heads: int, nope: int, rope_dim: int, value_dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q = rng.standard_normal((n_rows, n_heads, nope + rope_dim), np.float32)
    kv = rng.standard_normal((n_keys, n_heads, nope + value_dim), np.float32)
    return q, kv, rng.standard_normal((n_keys, rope_dim), np.float32)


@every_implementation_but("mla_prefill", "reference")
@pytest.mark.parametrize("sizes", [(4, 32, 16, 48), (3, 5, 6, 7)])
@pytest.mark.parametrize("arithmetic", [DECODING, FAST])
def test_a_row_does_not_depend_on_its_neighbours(
    function: Callable[..., None], sizes: tuple[int, int, int, int], arithmetic: int
) -> None:
    q, kv, k_pe = inputs(np.random.default_rng(51), 140, 900, *sizes)
    rounded = partial(function, arithmetic=arithmetic)
    for tile in (64, 700):
        together = attend(rounded, q, kv, k_pe, 760, tile)
        for t in range(0, 140, 3):
            alone = attend(rounded, q[t : t + 1], kv, k_pe, 760 + t, tile, n_threads=1)
            np.testing.assert_array_equal(together[t : t + 1], alone, err_msg=f"row {t}, tile {tile}")


@every_implementation("mla_prefill")
@pytest.mark.parametrize("arithmetic", [FAST, EXACT])
def test_roundings_of_prompts(function: Callable[..., None], arithmetic: int) -> None:
    """Beside the reference, in parts of the weighted sum of magnitudes: that of one rounding, or of float32."""
    tolerance = 1e-2 if arithmetic == FAST else 1e-5
    for case, (given, magnitudes) in enumerate(
        zip(agreement.cases("mla_prefill"), agreement.cases("mla_prefill"), strict=True)
    ):
        *_, running_max, running_sum, out = given
        function(*given, arithmetic=arithmetic, n_threads=1)
        expected = agreement.expected_of("mla_prefill")[case]
        value_dim = out.shape[2]
        magnitudes[1][:, :, -value_dim:] = abs(magnitudes[1][:, :, -value_dim:])
        magnitudes[-1][...] = abs(magnitudes[-1])
        REGISTRY["mla_prefill"].reference(*magnitudes, n_threads=1)
        expected_max, expected_sum, expected_out = expected[-3:]
        total = expected_sum[:, :, None]
        error = abs(out / running_sum[:, :, None] - expected_out / total)
        assert (error <= tolerance * magnitudes[-1] / total).all(), f"case {case}: {error.max()}"
        np.testing.assert_allclose(
            np.log(running_sum) + running_max, np.log(expected_sum) + expected_max, rtol=0, atol=tolerance
        )


@every_implementation("mla_prefill")
def test_threads_do_not_matter_to_roundings(function: Callable[..., None]) -> None:
    agreement.check_threads_do_not_matter("mla_prefill", partial(function, arithmetic=FAST))


@every_implementation_but("mla_prefill", "reference")
@pytest.mark.parametrize("arithmetic", [DECODING, FAST])
def test_nan_and_infinity_reach_the_queries_that_see_them(function: Callable[..., None], arithmetic: int) -> None:
    rounded = partial(function, arithmetic=arithmetic)
    for special in (np.nan, np.inf):
        q, kv, k_pe = inputs(np.random.default_rng(54), 80, 80, 2, 16, 16, 40)
        expected = attend(rounded, q, kv, k_pe, 0, tile=80)
        q[3, 0, 5] = special
        kv[40, 1, 16 + 7] = special
        out = attend(rounded, q, kv, k_pe, 0, tile=80)
        assert np.isnan(out[3, 0]).all()
        assert not np.isfinite(out[40:, 1, 7]).any()
        out[3, 0], out[:, 1, 7] = expected[3, 0], expected[:, 1, 7]
        np.testing.assert_array_equal(out, expected)


@every_implementation("mla_prefill")
@pytest.mark.parametrize("tile", [1, 7, 64, 300])
def test_tiles_against_the_whole_softmax(function: Callable[..., None], tile: int) -> None:
    nope, rope_dim, first_query = 24, 8, 150
    q, kv, k_pe = inputs(np.random.default_rng(52), 130, 280, 3, nope, rope_dim, 20)
    keys = np.concatenate([kv[:, :, :nope], np.repeat(k_pe[:, None], 3, axis=1)], axis=2).astype(np.float64)
    scores = 0.1 * np.einsum("thn,shn->ths", q.astype(np.float64), keys)
    hidden = np.arange(280)[None] > first_query + np.arange(130)[:, None]
    scores[np.repeat(hidden[:, None], 3, axis=1)] = -np.inf
    probs = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("ths,shv->thv", probs / probs.sum(axis=2, keepdims=True), kv[:, :, nope:])
    out = attend(function, q, kv, k_pe, first_query, tile)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)


@every_implementation("mla_prefill")
@pytest.mark.parametrize("arithmetic", [DECODING, FAST])
def test_keys_ahead_of_a_query_do_not_reach_it(function: Callable[..., None], arithmetic: int) -> None:
    q, kv, k_pe = inputs(np.random.default_rng(53), 6, 12, 2, 16, 16, 32)
    rounded = partial(function, arithmetic=arithmetic)
    expected = attend(rounded, q, kv, k_pe, 2, tile=12)
    kv[8:], k_pe[8:] = 1e30, 1e30
    np.testing.assert_array_equal(attend(rounded, q, kv, k_pe, 2, tile=12), expected)


@every_implementation_but("mla_prefill", "reference")
@wrong_arguments(
    *wrong_floats("q", 3),
    ("kv", as_float64),
    ("kv", one_more(0)),
    ("kv", one_more(1)),
    ("kv", one_more(2)),
    ("k_pe", as_float64),
    ("k_pe", one_more(0)),
    ("k_pe", one_more(1)),
    ("running_max", as_float64),
    ("running_max", one_more(0)),
    ("running_max", read_only),
    ("running_sum", one_more(1)),
    ("running_sum", read_only),
    ("out", as_float64),
    ("out", one_more(0)),
    ("out", one_more(1)),
    ("out", one_more(2)),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("mla_prefill", function, name, change)
