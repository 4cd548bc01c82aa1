"""The kernel mla_decode, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/mla_decode.py`."""

from collections.abc import Callable

import numpy as np
import pytest

from deepzig._kernels.mla_decode import scratch_size

from .agreement import every_implementation, every_implementation_but
from .refusals import (
    as_float64,
    as_int64,
    check_refuses,
    first_half,
    one_more,
    read_only,
    wrong_arguments,
    wrong_floats,
)


def wider_than_a_row(out: np.ndarray) -> np.ndarray:
    return np.zeros((*out.shape[:2], 4096), np.float32)


def attend(
    function: Callable[..., None],
    q_latent: np.ndarray,
    pages: np.ndarray,
    tables: np.ndarray,
    row_sequence: list[int],
    lengths: list[int],
    rank: int,
    n_threads: int = 2,
    scales: np.ndarray | None = None,
) -> np.ndarray:
    """f32 (T, H, R); softmax_scale 0.1."""
    n_rows, n_heads = q_latent.shape[:2]
    scratch = np.full(scratch_size(n_rows, n_heads, rank, max(lengths)), np.nan, np.float32)
    out = np.empty((n_rows, n_heads, rank), np.float32)
    rows = np.array(row_sequence, np.int32), np.array(lengths, np.int32)
    function(q_latent, pages, scales, tables, *rows, 0.1, scratch, out, n_threads=n_threads)
    return out


@every_implementation_but("mla_decode", "reference")
@pytest.mark.parametrize("n_heads", [1, 5, 16, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None], n_heads: int, dtype: type) -> None:
    """Rows of several sequences and of several lengths, in one call and alone."""
    rng = np.random.default_rng(41)
    pages = rng.standard_normal((40, 32, 48), np.float32)
    scales = None
    if dtype is np.int8:
        pages, scales = np.rint(40 * pages).astype(np.int8), rng.uniform(0.01, 0.05, (40, 32)).astype(np.float32)
    tables = rng.permutation(40)[:36].reshape(2, 18).astype(np.int32)
    row_sequence, lengths = [0, 1, 1, 0, 1], [1, 576, 257, 32, 300]
    q_latent = rng.standard_normal((5, n_heads, 48), np.float32)
    together = attend(function, q_latent, pages, tables, row_sequence, lengths, 40, scales=scales)
    for t in range(5):
        one = q_latent[t : t + 1], pages, tables, row_sequence[t:][:1], lengths[t:][:1]
        alone = attend(function, *one, 40, n_threads=1, scales=scales)
        np.testing.assert_array_equal(together[t : t + 1], alone, err_msg=f"row {t}")


@every_implementation("mla_decode")
def test_large_scores_neither_overflow_nor_vanish(function: Callable[..., None]) -> None:
    """Scores of +-1e5: the best cached row wins alone, wherever it lies."""
    pages = np.zeros((5, 64, 24), np.float32)
    pages[:, :, 20] = -1e5
    pages[..., :16] = np.arange(5 * 64).reshape(5, 64, 1)
    tables = np.array([[4, 2, 0, 1, 3]], np.int32)
    q_latent = np.zeros((1, 3, 24), np.float32)
    q_latent[:, :, 20] = 10
    for page, place, row in ((4, 0, 0), (0, 63, 191), (3, 43, 299)):
        marked = pages.copy()
        marked[page, place, 20] = 1e5
        assert tables[0, row // 64] == page
        out = attend(function, q_latent, marked, tables, [0], [300], 16)
        np.testing.assert_array_equal(out, np.full_like(out, page * 64 + place))


@every_implementation("mla_decode")
def test_int8_rows_are_codes_times_scale(function: Callable[..., None]) -> None:
    """The same numbers as f32 pages give the same output, to the last sums; a row of NaN scale gives NaN."""
    rng = np.random.default_rng(43)
    codes = rng.integers(-127, 128, (6, 64, 576)).astype(np.int8)
    scales = rng.uniform(0.001, 0.02, (6, 64)).astype(np.float32)
    q_latent = rng.standard_normal((2, 5, 576), np.float32)
    tables = np.array([[5, 0, 3, 1, 2]], np.int32)
    floats = codes.astype(np.float32) * scales[:, :, None]
    expected = attend(function, q_latent, floats, tables, [0, 0], [257, 300], 512)
    out = attend(function, q_latent, codes, tables, [0, 0], [257, 300], 512, scales=scales)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    scales[2, 2] = np.nan  # position 258
    out = attend(function, q_latent, codes, tables, [0, 0], [257, 300], 512, scales=scales)
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


@every_implementation("mla_decode")
def test_rows_beyond_the_length_are_not_read(function: Callable[..., None]) -> None:
    """Neither the rest of a page nor pages of block_tables after it, which may be any number."""
    rng = np.random.default_rng(42)
    pages = rng.standard_normal((3, 64, 32), np.float32)
    q_latent = rng.standard_normal((1, 4, 32), np.float32)
    expected = attend(function, q_latent, pages, np.array([[2, 0, 1]], np.int32), [0], [100], 24)
    pages[0, 36:], pages[1] = np.nan, np.nan
    out = attend(function, q_latent, pages, np.array([[2, 0, -7]], np.int32), [0], [100], 24)
    np.testing.assert_array_equal(out, expected)


def above_the_table(lengths: np.ndarray) -> np.ndarray:
    return lengths + 1000


def zeroed(lengths: np.ndarray) -> np.ndarray:
    return lengths * 0


def beyond_the_last(numbers: np.ndarray) -> np.ndarray:
    return numbers + 1000


def negative(numbers: np.ndarray) -> np.ndarray:
    return ~numbers


@every_implementation_but("mla_decode", "reference")
@wrong_arguments(
    *wrong_floats("q_latent", 3),
    ("pages", as_float64),
    ("pages", one_more(2)),
    ("scales", as_float64),
    ("scales", one_more(0)),
    ("scales", one_more(1)),
    ("block_tables", as_int64),
    ("block_tables", beyond_the_last),
    ("block_tables", negative),
    ("row_sequence", as_int64),
    ("row_sequence", one_more(0)),
    ("row_sequence", beyond_the_last),
    ("row_sequence", negative),
    ("lengths", as_int64),
    ("lengths", one_more(0)),
    ("lengths", above_the_table),
    ("lengths", zeroed),
    ("scratch", as_float64),
    ("scratch", first_half),
    ("out", as_float64),
    ("out", one_more(0)),
    ("out", one_more(1)),
    ("out", read_only),
    ("out", wider_than_a_row),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("mla_decode", function, name, change)
