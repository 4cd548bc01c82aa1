"""Prompts in their three forms, and the token ids that they stand for.

Called by `llm`; calls `text`. Knows nothing of requests or of the model but the size of its vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from deepzig.errors import RequestError, TokenizerError
from deepzig.text.chat import ChatTemplate
from deepzig.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray | Sequence[Mapping[str, Any]]  # text, token ids, or chat messages


def encode_prompt(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    chat_template: ChatTemplate | None,
    vocab_size: int,
    room: int | None = None,
) -> np.ndarray:
    """Token ids i32 (S,) of a prompt: at least one, all in the vocabulary.

    Raises:
        RequestError: the prompt is empty, has ids outside the vocabulary, or needs a tokenizer or template that is
            missing.
        ContextLengthError: a text is too long to have no more than `room` tokens.
        TokenizerError: the chat template fails, or the tokenizer is another model's.
        ResourceError: the process that renders the chat template is killed, or cannot be started.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise RequestError("this model folder has no tokenizer; add the model's, or give token ids (Python, HTTP)")
        if room is not None:
            tokenizer.check_room(prompt, room)
        ids = _known_ids(tokenizer.encode(prompt), vocab_size)
    elif isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
        if tokenizer is None or chat_template is None:
            raise RequestError("this model has no chat template; give text instead of messages")
        messages = cast(Sequence[Mapping[str, Any]], prompt)
        ids = _known_ids(chat_template.render_tokens(messages, tokenizer, room), vocab_size)
    else:
        ids = _given_ids(cast(Sequence[int] | np.ndarray, prompt))
    if not len(ids):
        raise RequestError("the prompt has no tokens; give at least one")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise RequestError(f"a token id of the prompt is outside the vocabulary of {vocab_size}")
    return ids.astype(np.int32)


def _known_ids(encoded: list[int], vocab_size: int) -> np.ndarray:
    """Ids i64 (S,) that the tokenizer gives. Raises TokenizerError if it belongs to a larger vocabulary."""
    if encoded and max(encoded) >= vocab_size:
        raise TokenizerError(
            f"the tokenizer gives token id {max(encoded)}, but the model has {vocab_size}; "
            "the two do not belong together, fetch the tokenizer of this model"
        )
    return np.array(encoded, np.int64)


def _given_ids(prompt: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ids i64 (S,) as they were given. Raises RequestError if they are none."""
    try:
        ids = np.asarray(prompt)
    except ValueError:  # lists of unequal lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise RequestError("a prompt must be text, a list of token ids, or a list of messages")
    return ids.astype(np.int64)
