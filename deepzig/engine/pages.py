"""PagePool: which pages of the latent cache are free, and how many holders each of the others has.

Called by `scheduler` and `prefix`. Knows page numbers only, not what is in a page.
"""


class PagePool:
    """Pages 0 to n_pages - 1. A page with several holders is read by all and written by none."""

    def __init__(self, n_pages: int) -> None:
        self._holders = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_pages(self) -> int:
        """All pages, free or not."""
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages without a holder."""
        return len(self._free)

    def take(self) -> int | None:
        """A free page, now with one holder; None if there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add a holder to a page that has one."""
        assert self._holders[page] > 0
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Take a holder away; without holders the page is free."""
        assert self._holders[page] > 0
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether the page has more than one holder, so that a writer needs a copy."""
        return self._holders[page] > 1
