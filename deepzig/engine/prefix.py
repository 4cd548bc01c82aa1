"""PrefixTree: pages of finished requests, found again by the tokens that they hold.

A node is a page; its path from the root spells the tokens before it. Each tenant has a tree of its own, so that nobody
learns from timing what others asked. The tree is one holder of each of its pages; pages that only the tree holds are
given back least recently used first. Called by `engine`; knows tokens and page numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deepzig.engine.pages import PagePool
from deepzig.model.cache import PAGE_SIZE


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]  # at most PAGE_SIZE; fewer only in a leaf
    page: int
    parent: "_Node | None"
    last_used: int
    children: list["_Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Match:
    """What the tree has of a text: whole pages to share, then perhaps the beginning of one to copy."""

    pages: list[int]
    partial_page: int | None
    n_partial: int  # tokens of partial_page that match

    @property
    def n_tokens(self) -> int:
        """Tokens that need no computing."""
        return len(self.pages) * PAGE_SIZE + self.n_partial


class SavedPage(NamedTuple):
    """A page of the tree, as it is saved."""

    tokens: tuple[int, ...]
    page: int
    parent: int  # place of the page before it in the list; -1: it begins a text


class PrefixTree:
    """All tenants' trees over one pool."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[str, _Node] = {}
        self._clock = 0
        self.n_inserted = 0  # pages that have come, ever

    def match(self, tenant: str, tokens: Sequence[int]) -> Match:
        """The longest beginning of `tokens` that is in the tenant's tree."""
        self._clock += 1
        node = self._roots.get(tenant)
        pages: list[int] = []
        while node is not None:
            rest = tokens[len(pages) * PAGE_SIZE :]
            best = max(node.children, key=lambda child: _common(child.tokens, rest), default=None)
            common = 0 if best is None else _common(best.tokens, rest)
            if best is None or common == 0:
                break
            best.last_used = self._clock
            if common < PAGE_SIZE:
                return Match(pages, best.page, common)
            pages.append(best.page)
            node = best
        return Match(pages, None, 0)

    def insert(self, tenant: str, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember that pages hold tokens, page by page. What the tree has already is not stored twice."""
        self._clock += 1
        node = self._roots.setdefault(tenant, _Node((), -1, None, 0))
        for index, page in enumerate(pages):
            part = tuple(tokens[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            if not part:
                return
            known = next((child for child in node.children if child.tokens[: len(part)] == part), None)
            if known is None:
                known = self._add(node, part, page)
            known.last_used = self._clock
            if len(known.tokens) < PAGE_SIZE:
                return
            node = known

    def saved_pages(self, tenant: str, most: int) -> list[SavedPage]:
        """A tenant's pages, each behind its parent: the whole texts that were used last, at most `most` pages."""
        places: dict[int, int] = {}  # id of a node -> its place in the list
        saved: list[SavedPage] = []
        root = self._roots.get(tenant)
        leaves = [node for node in self._below([root] if root else []) if not node.children]
        for leaf in sorted(leaves, key=lambda node: -node.last_used):
            path = [leaf]
            while path[-1].parent is not None and path[-1].parent is not root:
                path.append(path[-1].parent)
            new = [node for node in reversed(path) if id(node) not in places]
            if len(saved) + len(new) > most:
                break
            for node in new:
                places[id(node)] = len(saved)
                saved.append(SavedPage(node.tokens, node.page, places.get(id(node.parent), -1)))
        return saved

    def evict(self) -> bool:
        """Give back the least recently used page that only the tree holds. False: there is none."""
        idle = [node for node in self._nodes() if not node.children and not self._pool.is_shared(node.page)]
        if not idle:
            return False
        oldest = min(idle, key=lambda node: node.last_used)
        assert oldest.parent is not None
        oldest.parent.children.remove(oldest)
        self._pool.release(oldest.page)
        return True

    @property
    def n_pages(self) -> int:
        """Pages that the tree holds."""
        return sum(1 for _ in self._nodes())

    def _add(self, parent: _Node, tokens: tuple[int, ...], page: int) -> _Node:
        """A new node; a shorter one that it continues gives way."""
        for child in parent.children:
            if not child.children and child.tokens == tokens[: len(child.tokens)]:
                parent.children.remove(child)
                self._pool.release(child.page)
                break
        node = _Node(tokens, page, parent, self._clock)
        self.n_inserted += 1
        parent.children.append(node)
        self._pool.share(page)
        return node

    def _nodes(self) -> Iterator[_Node]:
        return self._below(self._roots.values())

    def _below(self, nodes: Iterable[_Node]) -> Iterator[_Node]:
        waiting = [child for node in nodes for child in node.children]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        n += 1
    return n
