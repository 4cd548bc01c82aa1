"""Cuts streamed text at the first stop string.

Called by `engine.generation` with what its decoder emits. Knows nothing of tokens.
"""

from collections.abc import Sequence

from deepzig.errors import RequestError


class StopMatcher:
    """Emits text up to the stop string that begins earliest, however the text is cut into chunks.

    Text that may turn out to begin a stop string is held back, so that none is ever emitted, not even in part. When one
    stop string is complete but another, still open, began before it, the answer waits for the next text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("an empty stop string would stop every answer at once; leave it out")
        self._searches = [_Search(stop) for stop in stops]
        self._held = ""
        self._held_start = 0  # position of _held in the whole text
        self._stop_start: int | None = None  # earliest complete stop string so far
        self.hit = False  # a stop string has ended the text

    def push(self, text: str) -> str:
        """Text that may be emitted now; after a hit always ""."""
        if self.hit:
            return ""
        self._held += text
        ends = [search.feed(text) for search in self._searches]
        self._stop_start = min((start for start in (self._stop_start, *ends) if start is not None), default=None)
        whole_length = self._held_start + len(self._held)
        open_start = min((whole_length - search.n_matched for search in self._searches), default=whole_length)
        if self._stop_start is not None and self._stop_start <= open_start:
            self.hit = True
            return self._release(self._stop_start)
        return self._release(open_start)

    def flush(self) -> str:
        """The text still held back when no more comes, cut at a stop string if a complete one is in it."""
        if self.hit:
            return ""
        self.hit = self._stop_start is not None
        return self._release(self._held_start + len(self._held) if self._stop_start is None else self._stop_start)

    def _release(self, end: int) -> str:
        emitted = self._held[: end - self._held_start]
        self._held = self._held[len(emitted) :]
        self._held_start += len(emitted)
        return emitted


class _Search:
    """Knuth-Morris-Pratt search for one stop string: constant work a character, whatever the string."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._fallback = _fallbacks(stop)
        self._position = 0
        self.n_matched = 0  # length of the longest end of the text so far that begins the stop string

    def feed(self, text: str) -> int | None:
        """Start of the first occurrence that ends in `text`, counted in the whole text; None if there is none."""
        first: int | None = None
        for char in text:
            self._position += 1
            while self.n_matched and self._stop[self.n_matched] != char:
                self.n_matched = self._fallback[self.n_matched]
            self.n_matched += self._stop[self.n_matched] == char
            if self.n_matched == len(self._stop):
                first = self._position - len(self._stop) if first is None else first
                self.n_matched = self._fallback[self.n_matched]
        return first


def _fallbacks(stop: str) -> list[int]:
    """For each length n, the longest proper end of stop[:n] that also begins it."""
    fallback = [0, 0]
    matched = 0
    for char in stop[1:]:
        while matched and stop[matched] != char:
            matched = fallback[matched]
        matched += stop[matched] == char
        fallback.append(matched)
    return fallback
