"""Rows of a step: which positions of which sequences the model computes, on which pages.

Called by whoever runs the model: `engine`, `drafting`, `whole_sequence` and `evaluate`; calls the cache's `Rows` only.
"""

from collections.abc import Sequence

import numpy as np

from deepzig.engine.request import Branch
from deepzig.model.cache import LatentCache, Rows


def branch_rows(branches: Sequence[Branch], spans: Sequence[range], *, is_prompt: bool) -> Rows:
    """A span of positions of each branch, one branch after the other. Their block tables end in zeros."""
    width = max(len(branch.pages) for branch in branches)
    return Rows(
        positions=np.array([position for span in spans for position in span], np.int32),
        row_sequence=np.array([sequence for sequence, span in enumerate(spans) for _ in span], np.int32),
        block_tables=np.array([branch.pages + [0] * (width - len(branch.pages)) for branch in branches], np.int32),
        is_prompt=is_prompt,
    )


def sequence_rows(first: int, stop: int, cache: LatentCache, *, is_prompt: bool = True) -> Rows:
    """Rows [first, stop) of a sequence that owns all pages of its cache, in order."""
    return Rows(
        positions=np.arange(first, stop, dtype=np.int32),
        row_sequence=np.zeros(stop - first, np.int32),
        block_tables=np.arange(cache.n_pages, dtype=np.int32)[None],
        is_prompt=is_prompt,
    )
