"""Whole sequences through the model, with a cache of their own: for logits, traces and evaluation.

Called by `llm`, `trace` and `evaluate`; calls `rows` and the model.
"""

from collections.abc import Iterator

import numpy as np

from deepzig.engine.rows import sequence_rows
from deepzig.engine.sampling import TokenLogprob, check_finite, token_logprob
from deepzig.engine.scheduler import PREFILL_CHUNK
from deepzig.model.cache import LatentCache
from deepzig.model.deepseek import DeepseekModel, Observer

SCORED_ROWS = 64  # tokens whose logits are held at a time


def score_sequence(
    model: DeepseekModel, token_ids: np.ndarray, cache: LatentCache, n_top: int
) -> Iterator[list[TokenLogprob]]:
    """Log-probabilities of token_ids[1:], i32 (S,), some at a time, since a prompt's logits would be large."""
    first = 0
    for hidden in forward_chunks(model, token_ids[:-1], cache):
        for start in range(0, len(hidden), SCORED_ROWS):
            logits = model.logits(hidden[start : start + SCORED_ROWS])
            check_finite(logits.max())
            targets = token_ids[first + start + 1 :]
            yield [token_logprob(row, int(token), n_top) for row, token in zip(logits, targets, strict=False)]
        first += len(hidden)


def mtp_chunks(model: DeepseekModel, token_ids: np.ndarray, cache: LatentCache) -> Iterator[np.ndarray]:
    """Run the first MTP layer over token_ids i32 (S,) in chunks; yields f32 (T, vocab_size), of S - 1 rows in all."""
    first = 0
    for hidden in forward_chunks(model, token_ids[:-1], cache):
        stop = first + len(hidden)
        rows = sequence_rows(first, stop, cache)
        yield model.mtp_logits(0, model.mtp_forward(0, token_ids[first + 1 : stop + 1], hidden, rows, cache))
        first = stop


def forward_chunks(
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
        stop = min(first + chunk_size, len(token_ids))
        rows = sequence_rows(first, stop, cache)
        yield model.forward(token_ids[first:stop], rows, cache, form=form, observer=observer)
