"""evaluate: perplexity of a model on a text, and how far its predictions are from those of a reference model.

Called by the command line and the bench; calls `windows`, and the models through the engine's `forward_chunks`. The
logits of a few rows are held at a time: those of a whole text would be half a megabyte a token with V3's vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from deepzig.engine.llm import LLM
from deepzig.engine.sampling import check_finite, log_softmax
from deepzig.engine.whole_sequence import SCORED_ROWS, forward_chunks
from deepzig.errors import NonFiniteLogitsError, RequestError
from deepzig.evaluate.windows import Window, split_documents, window_size, windows_of

MAX_NATS = 700.0  # its exponential is still a float64


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from the reference's, over all predicted tokens."""

    mean_kl: float  # nats: mean of KL(reference || model)
    p99_kl: float  # 99th percentile
    same_top: float  # share of tokens where both think the same token likeliest


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text."""

    perplexity: float  # exp of the mean negative log-likelihood of a predicted token
    nll: float  # that mean, in nats
    tokens: int  # predicted
    documents: int
    window: int  # tokens
    stride: int
    divergence: Divergence | None = None  # with a reference


def evaluate(
    llm: LLM,
    text: str,
    *,
    reference: LLM | None = None,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Predict every token of `text` once, as `windows` says; sizes in tokens. progress: tokens done, and all of them.

    Raises:
        RequestError: no tokenizer, no tokens, a window that does not fit, or a reference with another vocabulary.
        NonFiniteLogitsError: a model gives NaN or infinity, or logits so great that no perplexity can be told.
    """
    window, stride = window_size(llm, window, stride)
    windows, n_documents = windows_of(llm, text, window, stride)
    if reference is not None:
        _check_reference(llm, reference, split_documents(text)[0], window)
    total = sum(w.n_predicted for w in windows)
    nll: list[np.ndarray] = []
    divergence = _DivergenceSum()
    done = 0
    for w in windows:
        for targets, *logprobs in _rows(w, [llm] if reference is None else [llm, reference]):
            nll.append(-logprobs[0][np.arange(len(targets)), targets])
            if reference is not None:
                divergence.add(*logprobs)
            done += len(targets)
            progress(done, total)
    mean = float(np.concatenate(nll).mean(dtype=np.float64))
    if mean > MAX_NATS:
        raise NonFiniteLogitsError(
            f"a token of the text costs {mean:.0f} nats, of which there is no perplexity: the logits are those of a "
            "broken model; look at its files with `deepzig verify`"
        )
    return Evaluation(
        perplexity=math.exp(mean),
        nll=mean,
        tokens=total,
        documents=n_documents,
        window=window,
        stride=stride,
        divergence=divergence.result() if reference is not None else None,
    )


class _DivergenceSum:
    """Collects one number a token."""

    def __init__(self) -> None:
        self._kl: list[np.ndarray] = []
        self._same: list[np.ndarray] = []

    def add(self, logprobs: np.ndarray, reference: np.ndarray) -> None:
        """Add logprobs and reference, f32 (n, vocab_size)."""
        self._kl.append((np.exp(reference) * (reference - logprobs)).sum(axis=1, dtype=np.float64))
        self._same.append(logprobs.argmax(axis=1) == reference.argmax(axis=1))

    def result(self) -> Divergence:
        kl = np.concatenate(self._kl)
        return Divergence(float(kl.mean()), float(np.quantile(kl, 0.99)), float(np.concatenate(self._same).mean()))


def _check_reference(llm: LLM, reference: LLM, sample: str, window: int) -> None:
    if reference.config.vocab_size != llm.config.vocab_size:
        sizes = f"{llm.config.vocab_size} and {reference.config.vocab_size}"
        raise RequestError(f"model and reference have vocabularies of {sizes} tokens; compare forms of the same model")
    if window > reference.config.max_position_embeddings:
        raise RequestError(f"the reference's context is shorter than the window of {window} tokens; give --window")
    if reference.tokenizer is not None:
        assert llm.tokenizer is not None
        alike = {"add_bos": False, "allow_special": False}
        if reference.tokenizer.encode(sample, **alike) != llm.tokenizer.encode(sample, **alike):
            raise RequestError("model and reference have different tokenizers; compare forms of the same model")


def _rows(window: Window, models: list[LLM]) -> Iterator[list[np.ndarray]]:
    """Yields for a few tokens at a time: the tokens i32 (n,), and each model's log-probabilities f32 (n, vocab)."""
    hidden = [_hidden(llm, window) for llm in models]
    targets = window.token_ids[window.first_predicted :]
    for first in range(0, len(targets), SCORED_ROWS):
        rows = slice(first, first + SCORED_ROWS)
        parts = [log_probabilities(llm.model.logits(h[rows])) for llm, h in zip(models, hidden, strict=True)]
        yield [targets[rows], *parts]


def _hidden(llm: LLM, window: Window) -> np.ndarray:
    """Final states f32 (n_predicted, D) at the positions just before the predicted tokens."""
    token_ids = window.token_ids[:-1]
    chunks = forward_chunks(llm.model, token_ids, llm.model.make_cache(len(token_ids)))
    return np.concatenate(list(chunks))[window.first_predicted - 1 :]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities f32 (n, vocab_size) of logits. Raises NonFiniteLogitsError, for minus infinity too."""
    check_finite(float(logits.max()))
    check_finite(float(logits.min()))
    return log_softmax(logits)
