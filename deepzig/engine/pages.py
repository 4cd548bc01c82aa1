"""PagePool: which pages of the latent cache are free, and reference counts of the others.

Called by `scheduler`, `prefix` and `prompt_cache`. Knows page numbers only, not what is in a page.
"""


class PagePool:
    """Pages 0 to n_pages - 1. A page with several references is read by all holders and written by none."""

    def __init__(self, n_pages: int) -> None:
        self._ref_counts = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_pages(self) -> int:
        """All pages, free or not."""
        return len(self._ref_counts)

    @property
    def n_free(self) -> int:
        """Pages without a reference."""
        return len(self._free)

    def take(self) -> int | None:
        """A free page, now with one reference; None if there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._ref_counts[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add a reference to a page that has one."""
        assert self._ref_counts[page] > 0
        self._ref_counts[page] += 1

    def release(self, page: int) -> None:
        """Drop a reference; without any the page is free."""
        assert self._ref_counts[page] > 0
        self._ref_counts[page] -= 1
        if self._ref_counts[page] == 0:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether the page has more than one reference, so that a writer needs a copy."""
        return self._ref_counts[page] > 1
