"""mla_decode with Numba; contract in `mla_decode.py`.

Here the context is cut at pages, and a thread takes some heads of a row: it decodes each page once for all of them.
"""

import numpy as np

from deepzig._kernels._array_checks import need, need_output, packed, threads_for, unpack
from deepzig._kernels._numba_jit import jit
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._numba_weights import FROM_0, attend, dot_panel, floats_of
from deepzig._kernels.mla_decode import scratch_size
from deepzig._kernels.weight import Weight


@jit()
def _attend_row(
    rows: np.ndarray,
    q_latent: np.ndarray,
    pages: np.ndarray,
    page_size: int,
    block_table: np.ndarray,
    length: int,
    scale: np.float32,
    out: np.ndarray,
) -> None:
    """Heads of one token, `rows` of q_latent f32 (T H, R + P) and out f32 (T H, R). pages: descriptor of the cache."""
    width, rank = q_latent.shape[1], out.shape[1]
    panel = np.empty((page_size, width), np.float32)
    scores = np.empty((rows.size, page_size), np.float32)
    places = np.arange(rows.size)
    softmax = np.empty((rows.size, 2), np.float32)
    for j in range(rows.size):
        softmax[j, 0], softmax[j, 1] = np.float32(-np.inf), np.float32(0)
        for r in range(rank):
            out[rows[j], r] = np.float32(0)
    for first in range(0, length, page_size):
        count = min(page_size, length - first)
        start = block_table[first // page_size] * page_size
        cached = floats_of(pages, start, start + count, FROM_0, width, panel)
        dot_panel(cached, count, q_latent, rows, FROM_0, width, scores, places, FROM_0)
        for j in range(rows.size):
            attend(scores[j, :count], scale, cached, softmax[j], out[rows[j]])
    for j in range(rows.size):
        for r in range(rank):
            out[rows[j], r] /= softmax[j, 1]


@jit()
def _rows(
    first: int,
    stop: int,
    n_heads: int,
    q_latent: np.ndarray,
    pages: np.ndarray,
    page_size: int,
    block_tables: np.ndarray,
    row_sequence: np.ndarray,
    lengths: np.ndarray,
    scale: np.float32,
    out: np.ndarray,
) -> None:
    """first, stop count heads of all tokens."""
    while first < stop:
        t = first // n_heads
        row_stop = min((t + 1) * n_heads, stop)
        rows = np.arange(first, row_stop)
        _attend_row(rows, q_latent, pages, page_size, block_tables[row_sequence[t]], lengths[t], scale, out)
        first = row_stop


def mla_decode(
    q_latent: np.ndarray,
    pages: np.ndarray,
    scales: np.ndarray | None,
    block_tables: np.ndarray,
    row_sequence: np.ndarray,
    lengths: np.ndarray,
    softmax_scale: float,
    scratch: np.ndarray,
    out: np.ndarray,
    *,
    n_threads: int,
) -> None:
    need(q_latent, "q_latent", np.float32, None, None, None)
    n_rows, n_heads, width = q_latent.shape
    cached = _cached_rows(pages, scales, width)
    need(block_tables, "block_tables", np.int32, None, None)
    need(row_sequence, "row_sequence", np.int32, n_rows)
    need(lengths, "lengths", np.int32, n_rows)
    need_output(scratch, "scratch", None)
    need_output(out, "out", n_rows, n_heads, None)
    rank = out.shape[2]
    _check_pages(pages, block_tables, row_sequence, lengths)
    if scratch.size < scratch_size(n_rows, n_heads, rank, int(lengths.max(initial=0))):
        raise ValueError(f"scratch has {scratch.size} floats, fewer than mla_decode.scratch_size")
    result = packed(out)
    flat = packed(q_latent).reshape(-1, width), cached.descriptor, pages.shape[1]
    tables = packed(block_tables), packed(row_sequence), packed(lengths)
    threads = threads_for(n_threads, int(lengths.sum()) * n_heads * width)
    scale = np.float32(softmax_scale)
    run_rows(_rows, n_rows * n_heads, threads, n_heads, *flat, *tables, scale, result.reshape(-1, rank))
    unpack(result, out)


def _cached_rows(pages: np.ndarray, scales: np.ndarray | None, width: int) -> Weight:
    """The rows of all pages as one matrix. Raises ValueError unless pages and scales are what the contract says."""
    if scales is not None:
        need(pages, "pages", np.int8, None, None, width)
        need(scales, "scales", np.float32, *pages.shape[:2])
    else:
        need(pages, "pages", np.float32, None, None, width)
    for array in (pages, scales):
        if array is not None and not array.flags.c_contiguous:
            raise ValueError("pages and scales must be C-contiguous")
    shape = (pages.shape[0] * pages.shape[1], width)
    rows = pages.reshape(shape)
    if scales is not None:
        return Weight("int8", shape, rows.view(np.uint8), scales.reshape(-1, 1), "f32", group_size=width)
    return Weight("f32", shape, rows)


def _check_pages(pages: np.ndarray, block_tables: np.ndarray, row_sequence: np.ndarray, lengths: np.ndarray) -> None:
    """Raises ValueError unless every page that will be read exists."""
    n_pages, page_size = pages.shape[:2]
    for sequence, length in zip(row_sequence.tolist(), lengths.tolist(), strict=True):
        if not 0 <= sequence < len(block_tables):
            raise ValueError(f"row_sequence names block table {sequence} of {len(block_tables)}")
        if not 1 <= length <= block_tables.shape[1] * page_size:
            raise ValueError(f"length {length} does not fit {block_tables.shape[1]} pages")
        read = block_tables[sequence, : -(-length // page_size)]
        if not 0 <= read.min() <= read.max() < n_pages:
            raise ValueError(f"block_tables names pages {read.min()} to {read.max()} of {n_pages}")
