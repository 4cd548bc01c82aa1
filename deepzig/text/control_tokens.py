"""Finds control tokens, such as `<think>`, in text.

Called by the three backends; SentencePiece and tiktoken have no such search of their own, and `chat` must know where a
template wrote one.
"""

import re
from collections.abc import Iterable, Iterator

from deepzig.text.tokenizer_config import AddedToken


class ControlTokens:
    """The added tokens that only a template may write; see `AddedToken.is_control`."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.ids: dict[str, int] = {token.text: token.id for token in tokens if token.is_control}
        self.id_set = frozenset(self.ids.values())
        self.edge_chars = frozenset(text[i] for text in self.ids for i in (0, -1))
        # Longest first: where one token's text begins another's, the longer one is meant.
        ordered = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """(start, end) of every control token in `text`, left to right; found as they are taken, each takes 10 us."""
        return (match.span() for match in self._pattern.finditer(text)) if self._pattern else iter(())

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yields (piece, token id) for a control token and (piece, None) for the text between, never an empty piece."""
        position = 0
        for start, end in self.spans(text):
            if start > position:
                yield text[position:start], None
            yield text[start:end], self.ids[text[start:end]]
            position = end
        if position < len(text):
            yield text[position:], None
