"""Keeps the tokens of a conversation when its text is tokenised again, so that a prefix cache finds them.

Called by the chat in the terminal and by `llm_plugin`; calls `Tokenizer.bytes_or_none`. Knows nothing of caches or
templates.
"""

from collections.abc import Sequence
from itertools import accumulate

from deepzig.text.tokenizer import Tokenizer


def resumed(ids: Sequence[int], known: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` with the beginning that `known` spells as well, up to where tokens of both end, as `known` has it.

    What a model has said is often not what the tokenizer makes of that text: "th" "e" instead of "the".
    """
    spelled = [[_spelling(token, tokenizer) for token in tokens] for tokens in (ids, known)]
    same = _common("".join(spelled[0]), "".join(spelled[1]))
    ends, known_ends = ([0, *accumulate(map(len, pieces))] for pieces in spelled)
    last = max(end for end in set(ends) & set(known_ends) if end <= same)
    return [*known[: known_ends.index(last)], *ids[ends.index(last) :]]


def _common(left: str, right: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _spelling(token: int, tokenizer: Tokenizer) -> str:
    """A character for each byte; a control token, or one without text, is a character of its own."""
    content = None if token in tokenizer.control_tokens.id_set else tokenizer.bytes_or_none(token)
    return chr(0x100 + token) if content is None else content.decode("latin-1")
