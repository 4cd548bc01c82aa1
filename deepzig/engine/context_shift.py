"""ContextShift: how a sequence goes on when the context is full: without its oldest tokens, except the first page.

The first page stays, since attention leans on a sequence's beginning (arXiv 2309.17453). Half of the rest goes, in
whole pages, and what follows moves up: its k_pe is rotated to the new positions, its c_kv stays as it was computed.
Called by `engine`; knows numbers of tokens and pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deepzig.errors import RequestError
from deepzig.model.cache import PAGE_SIZE

KEPT_PAGES = 1  # at the beginning of a sequence


@dataclass(frozen=True)
class ContextShift:
    """What to drop in a context of `n_context` tokens. Raises RequestError if that is too small to drop anything."""

    n_context: int

    def __post_init__(self) -> None:
        if self.dropped_pages < 1:
            raise RequestError(f"a context of {self.n_context} tokens is too small for context_shift; load without it")

    @property
    def dropped_pages(self) -> int:
        """Pages that go at a time."""
        return (self.n_context // PAGE_SIZE - KEPT_PAGES) // 2

    @property
    def tokens_at_a_time(self) -> int:
        """Tokens that go at a time."""
        return self.dropped_pages * PAGE_SIZE

    def without_oldest(self, tokens: Sequence[int]) -> list[int]:
        """A prompt without its oldest tokens, tokens_at_a_time as often as it takes to make room for an answer.

        As a conversation grows, its prompts lose the same tokens until as many more must go: so they find their
        prefixes.
        """
        excess = len(tokens) - (self.n_context - 1)
        n_dropped = max(0, -(-excess // self.tokens_at_a_time)) * self.tokens_at_a_time
        kept = KEPT_PAGES * PAGE_SIZE
        return [*tokens[:kept], *tokens[kept + n_dropped :]]
