"""NgramIndex: what followed when a sequence last had the same tokens (prompt lookup). Called by `speculation`."""

from collections.abc import Sequence

NGRAM = 3  # tokens that must recur


class NgramIndex:
    """The n-grams of one growing sequence."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # position after the latest occurrence of each n-gram
        self._end = NGRAM  # the first n-gram that is not in _next ends before this position

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that followed the last time the sequence's last NGRAM tokens occurred; often none."""
        for end in range(self._end, len(tokens)):
            self._next[tuple(tokens[end - NGRAM : end])] = end
        self._end = max(self._end, len(tokens))
        found = self._next.get(tuple(tokens[-NGRAM:])) if len(tokens) >= NGRAM else None
        return [] if found is None else list(tokens[found : found + count])
