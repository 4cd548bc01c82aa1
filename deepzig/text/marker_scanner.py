"""Finds markers in text that comes in pieces, and holds back what may turn out to begin one.

Called by `answer_parser`. Knows nothing of what the markers mean.
"""

from collections.abc import Sequence


class MarkerScanner:
    """Gathers text until a marker is found. The caller names the markers that count at the moment."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> None:
        """Add text that has come."""
        self._held += text

    def push_front(self, text: str) -> None:
        """Put back text that was taken out."""
        self._held = text + self._held

    def next(self, markers: Sequence[str]) -> tuple[str, str | None]:
        """(text before the first marker, that marker), or (text that is certainly before one, None).

        Where two begin at the same place the longer one counts. What is returned is taken out.
        """
        found = min(
            ((at, -len(marker), marker) for marker in markers if (at := self._held.find(marker)) >= 0), default=None
        )
        if found is not None:
            at, _, marker = found
            text, self._held = self._held[:at], self._held[at + len(marker) :]
            return text, marker
        keep = max((_overlap(self._held, marker) for marker in markers), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, None

    def rest(self) -> str:
        """All that is still held, when no more text comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker` without being all of it."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
