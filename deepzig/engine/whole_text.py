"""Whole texts through the model, with a cache of their own: for logits, traces and evaluation. Called by `llm`."""

from collections.abc import Iterator

import numpy as np

from deepzig.engine.scheduler import PREFILL_CHUNK
from deepzig.model.cache import LatentCache, Rows
from deepzig.model.deepseek import DeepseekModel, Observer


def text_rows(first: int, last: int, cache: LatentCache, *, is_prompt: bool = True) -> Rows:
    """Rows [first, last) of a text that owns all pages of its cache, in order."""
    return Rows(
        positions=np.arange(first, last, dtype=np.int32),
        row_sequence=np.zeros(last - first, np.int32),
        block_tables=np.arange(cache.n_pages, dtype=np.int32)[None],
        is_prompt=is_prompt,
    )


def read_text(
    model: DeepseekModel,
    token_ids: np.ndarray,
    cache: LatentCache,
    *,
    chunk_size: int = PREFILL_CHUNK,
    form: str | None = None,
    observer: Observer | None = None,
) -> Iterator[np.ndarray]:
    """Run token_ids i32 (S,) through the model in chunks; yields f32 (T, D) of each chunk, after the final norm.

    form and observer as in `DeepseekModel.forward`.
    """
    for first in range(0, len(token_ids), chunk_size):
        last = min(first + chunk_size, len(token_ids))
        yield model.forward(token_ids[first:last], text_rows(first, last, cache), cache, form=form, observer=observer)
