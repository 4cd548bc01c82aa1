"""The latent cache: what attention keeps of every token, in pages that sequences share.

`engine` decides which page holds what; `attention` writes and reads. Knows nothing of requests.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from deepzig import _kernels

PAGE_SIZE = 64  # tokens a page
CACHE_DTYPES = {"f32": np.float32, "int8": np.int8}  # of the values of a row
TINY_SCALE = 1e-37  # rows below it are zero: their scale has no finite inverse


@dataclass(frozen=True)
class Rows:
    """The new tokens of one step: where each belongs and where its latent goes.

    Rows of the same sequence stand together, in order of position: a chunk of a prompt, or a last token and its draft.
    """

    positions: np.ndarray  # i32 (T,), position in the sequence
    row_sequence: np.ndarray  # i32 (T,), row of block_tables
    block_tables: np.ndarray  # i32 (B, blocks), pages of each sequence in order
    is_prompt: bool

    @property
    def n_rows(self) -> int:
        """T."""
        return len(self.positions)

    @cached_property
    def lengths(self) -> np.ndarray:
        """i32 (T,): tokens that each attends to, its own too."""
        return self.positions + 1

    @cached_property
    def longest(self) -> int:
        """Greatest of `lengths`."""
        return int(self.lengths.max())

    @cached_property
    def longest_span(self) -> int:
        """Most rows of one sequence."""
        return int(np.bincount(self.row_sequence).max())

    @cached_property
    def slot_mapping(self) -> np.ndarray:
        """i64 (T,): where the latents go, among the rows of all pages of a layer."""
        page = self.block_tables[self.row_sequence, self.positions // PAGE_SIZE]
        return page.astype(np.int64) * PAGE_SIZE + self.positions % PAGE_SIZE

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first row, row behind the last) of each sequence."""
        ends = np.flatnonzero(np.diff(self.row_sequence)) + 1
        yield from pairwise([0, *ends.tolist(), self.n_rows])


class LatentCache:
    """Per layer and token c_kv (R) beside the rotated k_pe (P): in float32, 143 KB a token for V3 with its MTP layer,
    where expanded keys and values would take 10 MB (DeepSeek-V2 report, table 1); or rounded to int8, 36 KB.
    docs/log.md says why not bf16, docs/quantising.md what int8 costs."""

    def __init__(self, n_layers: int, n_pages: int, latent_dim: int, dtype: str = "f32") -> None:
        """n_layers counts MTP layers too. dtype: one of CACHE_DTYPES."""
        # np.zeros maps memory that becomes real only when a page is written
        self.pages = np.zeros((n_layers, n_pages, PAGE_SIZE, latent_dim), CACHE_DTYPES[dtype])
        # f32 (n_layers, n_pages, PAGE_SIZE): an int8 row is its codes times its scale
        self._scales = np.zeros(self.pages.shape[:3], np.float32) if dtype == "int8" else None

    @property
    def n_pages(self) -> int:
        """Pages that sequences can hold together."""
        return self.pages.shape[1]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes over all layers."""
        n_layers, _, _, latent_dim = self.pages.shape
        return n_layers * (latent_dim * self.pages.itemsize + (0 if self._scales is None else self._scales.itemsize))

    def layer_rows(self, layer: int) -> tuple[np.ndarray, np.ndarray | None]:
        """All pages of a layer (n_pages, PAGE_SIZE, R + P), f32 or int8 codes, and their scales f32 (n_pages,
        PAGE_SIZE), None of f32 pages: as `_kernels.mla_decode` takes them."""
        return self.pages[layer], None if self._scales is None else self._scales[layer]

    def write(self, layer: int, rows: Rows, latent: np.ndarray) -> None:
        """Store latent f32 (T, R + P) of the new tokens."""
        stored = self.pages[layer].reshape(-1, latent.shape[1])  # a view
        if self._scales is None:
            stored[rows.slot_mapping] = latent
        else:
            stored[rows.slot_mapping], self._scales[layer].reshape(-1)[rows.slot_mapping] = to_int8(latent)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page, all layers of it."""
        self.pages[:, target] = self.pages[:, source]
        if self._scales is not None:
            self._scales[:, target] = self._scales[:, source]

    def read(self, layer: int, block_table: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Rows [first, stop) of the sequence with block_table i32 (blocks,): f32 (stop - first, R + P), a copy."""
        blocks = block_table[first // PAGE_SIZE : -(-stop // PAGE_SIZE)]
        start = first % PAGE_SIZE
        rows = self.pages[layer, blocks].reshape(-1, self.pages.shape[3])[start : start + stop - first]
        if self._scales is None:
            return rows
        return rows * self._scales[layer, blocks].reshape(-1, 1)[start : start + stop - first]

    def export_pages(self, pages: Sequence[int]) -> dict[str, np.ndarray]:
        """Copies of pages: "rows" (n, n_layers, PAGE_SIZE, R + P), with an int8 cache "scales" too, without R + P."""
        chosen = np.array(pages, np.int64)
        arrays = {"rows": np.ascontiguousarray(self.pages[:, chosen].swapaxes(0, 1))}
        if self._scales is not None:
            arrays["scales"] = np.ascontiguousarray(self._scales[:, chosen].swapaxes(0, 1))
        return arrays

    def import_page(self, page: int, arrays: Mapping[str, np.ndarray], index: int) -> None:
        """Fill a page with one of `export_pages`."""
        self.pages[:, page] = arrays["rows"][index]
        if self._scales is not None:
            self._scales[:, page] = arrays["scales"][index]

    def rotate_page(self, page: int, cos: np.ndarray, sin: np.ndarray, interleave: bool) -> None:
        """Rotate the k_pe of a page in all layers by cos, sin f32 (PAGE_SIZE, P / 2); c_kv stays.

        An int8 row is rounded again, by a new scale.
        """
        rows = self.pages[:, page]  # (n_layers, PAGE_SIZE, R + P)
        if self._scales is not None:
            rows = rows * self._scales[:, page, :, None]
        k_pe = rows.transpose(1, 0, 2)[:, :, -2 * cos.shape[1] :]  # (PAGE_SIZE, n_layers, P), a view
        _kernels.rope(k_pe, cos, sin, interleave, n_threads=1)
        if self._scales is not None:
            codes, scales = to_int8(rows.reshape(-1, rows.shape[2]))
            self.pages[:, page], self._scales[:, page] = codes.reshape(rows.shape), scales.reshape(rows.shape[:2])


def to_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32 (T, n) -> codes i8 (T, n), scales f32 (T,): the greatest magnitude of a row becomes 127.

    A row with NaN or infinity gets the scale NaN, which fails the request that reads it.
    """
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    scales[~np.isfinite(scales)] = np.nan
    factors = np.divide(1, scales, out=np.zeros_like(scales), where=scales > TINY_SCALE)
    codes = np.rint(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0) * factors[:, None]).astype(np.int8)
    return codes, scales
