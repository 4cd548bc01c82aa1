"""mla_decode: absorbed multi-head latent attention over the paged cache (DeepSeek-V2 report, sections 2.1.2 and
2.1.3).

    score[h, s] = softmax_scale * q[t, h] . latent[s]            s < lengths[t]
    out[t, h]   = sum_s softmax(score)[h, s] * latent[s, :R]

latent[s] is row s % page_size of page block_tables[row_sequence[t], s // page_size], int8 rows times their scale. Each
cached row is read once for all heads of a task. The context is cut at multiples of a fixed length and the parts are
merged in order (online softmax), so a row does not depend on the other rows, nor on n_threads. Called by
`model.attention`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

ISAS = ("plain", "avx2", "avx512")
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
CHUNK = 256  # cached rows of a task


def scratch_size(n_rows: int, n_heads: int, latent_rank: int, longest: int) -> int:
    """Floats for n_rows queries over at most `longest` cached rows: a partial output and two sums a chunk."""
    chunks = -(-longest // CHUNK)
    return n_rows * n_heads * chunks * (latent_rank + 2)


def reference(
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
    """
    q_latent f32 (T, H, R + P): W_UK-absorbed q_nope beside the rotated q_pe; C-contiguous
    pages f32 or i8 (n_pages, page_size, R + P), C-contiguous
    scales f32 (n_pages, page_size), C-contiguous, one a row of i8 pages; None for f32 pages
    block_tables i32 (B, blocks); row_sequence i32 (T,), row of block_tables; lengths i32 (T,), visible rows, >= 1
    scratch f32 (>= scratch_size,); out f32 (T, H, R), C-contiguous
    """
    page_size, rank = pages.shape[1], out.shape[2]
    for row, length in enumerate(lengths):
        blocks = block_tables[row_sequence[row], : -(-int(length) // page_size)]
        latent = pages[blocks].reshape(-1, pages.shape[2])[:length]  # (S, R + P)
        if scales is not None:
            latent = latent.astype(np.float32) * scales[blocks].reshape(-1, 1)[:length]
        scores = softmax_scale * (q_latent[row] @ latent.T)  # (H, S)
        probs = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[row] = (probs / probs.sum(axis=1, keepdims=True)) @ latent[:, :rank]


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Several sequences, scattered pages, lengths around the page and chunk sizes; f32 and int8 caches."""
    for n_heads, rank, rope_dim, page_size, longest in (
        (8, 64, 16, 64, 700),
        (20, 512, 64, 64, 300),
        (3, 20, 6, 4, 30),
    ):
        blocks = -(-longest // page_size)
        values = rng.standard_normal((2 * blocks + 1, page_size, rank + rope_dim), np.float32)
        tables = rng.permutation(2 * blocks + 1)[: 2 * blocks].reshape(2, blocks).astype(np.int32)
        codes = rng.integers(-127, 128, values.shape).astype(np.int8)
        scales = (rng.uniform(0.1, 4, values.shape[:2]) / 127).astype(np.float32)
        for pages, row_scales in ((values, None), (codes, scales)):
            for lengths in ([1], [longest, 1, page_size, page_size + 1, longest - 1]):
                visible = np.array(lengths, np.int32)
                row_sequence = (np.arange(len(lengths)) % 2).astype(np.int32)
                q_latent = rng.standard_normal((len(lengths), n_heads, rank + rope_dim), np.float32)
                scratch = np.empty(scratch_size(len(lengths), n_heads, rank, longest), np.float32)
                out = np.empty((len(lengths), n_heads, rank), np.float32)
                yield q_latent, pages, row_scales, tables, row_sequence, visible, 0.05, scratch, out


def cost(
    q_latent: np.ndarray,
    pages: np.ndarray,
    scales: np.ndarray | None,
    block_tables: np.ndarray,
    row_sequence: np.ndarray,
    lengths: np.ndarray,
    softmax_scale: float,
    scratch: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:
    """(bytes moved, floating-point operations)."""
    visible = int(lengths.sum())
    width, rank = q_latent.shape[2], out.shape[2]
    row_bytes = width * pages.itemsize + (0 if scales is None else scales.itemsize)
    moved = visible * row_bytes + q_latent.nbytes + out.nbytes
    return moved, 2 * visible * q_latent.shape[1] * (width + rank)
