"""Windows: a text as token sequences for a model, each token to be predicted once.

Called by `perplexity`, `calibration` and `expert_load`; calls the tokenizer through an LLM.

Documents. A line that is just `<|endoftext|>` ends one; a text without such lines is one document. White space around a
document is dropped, and documents without tokens are left out.

BOS. Every window begins with the tokens that the tokenizer puts before a text (BOS, for DeepSeek's models). They are
never predicted. Without such a rule the first token of a window has nothing before it and is not predicted either.

Windows. The first window of a document holds its first `window` tokens, BOS among them. Each further one predicts the
next `stride` tokens, or as many as fit after BOS, with as many tokens of context as the window has room for. With
stride = window the context is BOS alone, which is fastest; the smaller the stride, the more context and the lower the
perplexity.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepzig.engine.llm import LLM
from deepzig.errors import RequestError

SEPARATOR = "<|endoftext|>"
DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class Window:
    """Tokens to run a model on; those from `first_predicted` on count."""

    token_ids: np.ndarray  # i32 (T,)
    first_predicted: int

    @property
    def n_predicted(self) -> int:
        """Tokens that count."""
        return len(self.token_ids) - self.first_predicted


def windows_of(
    llm: LLM, text: str, window: int | None = None, stride: int | None = None
) -> tuple[list[Window], int]:
    """The windows of a text, at least one, and the number of its documents.

    Raises RequestError if there is no tokenizer or no token to predict, or if the sizes cannot be.
    """
    window, stride = window_size(llm, window, stride)
    prefix, encoded = encode_documents(llm, split_documents(text))
    windows = [w for token_ids in encoded for w in iter_windows(prefix, token_ids, window, stride)]
    if not windows:
        raise RequestError("the text has no token to predict; give more text")
    return windows, len(encoded)


def split_documents(text: str) -> list[str]:
    """The documents of a text, stripped."""
    documents: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if line.strip() == SEPARATOR:
            documents.append([])
        else:
            documents[-1].append(line)
    return [document for lines in documents if (document := "".join(lines).strip())]


def window_size(llm: LLM, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride in tokens, defaults filled in. Raises RequestError if they cannot be."""
    longest = llm.config.max_position_embeddings
    window = min(DEFAULT_WINDOW, longest) if window is None else window
    stride = window if stride is None else stride
    if not 2 <= window <= longest:
        raise RequestError(f"a window of {window} tokens is not between 2 and the model's context of {longest}")
    if not 1 <= stride <= window:
        raise RequestError(f"a stride of {stride} is not between 1 and the window of {window} tokens")
    return window, stride


def encode_documents(llm: LLM, documents: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens before every window, and the tokens of each document without them.

    Raises RequestError if the model has no tokenizer or the text no tokens.
    """
    if llm.tokenizer is None:
        raise RequestError(f"{llm.name} has no tokenizer; a text cannot be evaluated without one")
    prefix = llm.tokenizer.encode("")
    if llm.tokenizer.eos_token_id in prefix[-1:]:  # a rule that ends texts, too
        prefix = prefix[:-1]
    encoded = [llm.tokenizer.encode(document, add_bos=False, allow_special=False) for document in documents]
    encoded = [token_ids for token_ids in encoded if token_ids]
    if not encoded:
        raise RequestError("the text has no tokens; give a file with text")
    return prefix, encoded


def iter_windows(prefix: Sequence[int], token_ids: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """The windows of one document. Raises RequestError if the tokens before it fill a window."""
    room = window - len(prefix)
    if room < 1:
        raise RequestError(f"a window of {window} tokens is filled by those before a text; give a larger one")
    unpredicted = 0 if prefix else 1  # the first token of a document, when nothing stands before it
    done = min(room, len(token_ids))
    if done > unpredicted:
        yield Window(np.array([*prefix, *token_ids[:done]], np.int32), max(len(prefix), 1))
    stride = min(stride, window - max(len(prefix), 1))
    while done < len(token_ids):
        end = min(done + stride, len(token_ids))
        inside = [*prefix, *token_ids[max(0, end - room) : end]]
        yield Window(np.array(inside, np.int32), len(inside) - (end - done))
        done = end
