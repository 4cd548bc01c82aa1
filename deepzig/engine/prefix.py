"""PrefixTree: the prefix cache: pages of finished requests, found again by the tokens that they hold.

A node is a page; its path from the root spells the tokens before it. Each tenant has a tree of its own, so that nobody
learns from timing what others asked. The tree has a reference to each of its pages; pages that only the tree holds are
evicted least recently used first. Called by `scheduler` and `prompt_cache`; knows tokens and page numbers.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deepzig.engine.pages import PagePool
from deepzig.model.cache import PAGE_SIZE


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]  # at most PAGE_SIZE; fewer only in a leaf
    page: int
    parent: "_Node | None"  # None: a root, or no longer in the tree
    last_used: int
    children: list["_Node"] = field(default_factory=list)  # sorted by tokens; none begins another

    def place(self, tokens: tuple[int, ...]) -> int:
        """Place of the first child that is not before `tokens`. Of all children its neighbours share the longest
        beginning with them."""
        return bisect_left(self.children, tokens, key=lambda child: child.tokens)


@dataclass(frozen=True)
class Match:
    """What the tree has of a sequence: whole pages to share, then perhaps part of one to copy."""

    pages: list[int]
    partial_page: int | None
    n_partial: int  # tokens of partial_page that match


class SavedPage(NamedTuple):
    """A page of the tree, as it is saved."""

    tokens: tuple[int, ...]
    page: int
    parent: int  # place of the page before it in the list; -1: it begins a sequence


class PrefixTree:
    """All tenants' trees over one pool."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[str, _Node] = {}
        self._clock = 0
        self._idle: list[tuple[int, int, _Node]] = []  # heap of what `evict` found: last used, page
        self.n_inserted = 0  # pages that have come, ever
        self.n_pages = 0  # that the tree holds; counted, since it is asked for after each step

    def match(self, tenant: str, tokens: Sequence[int]) -> Match:
        """The longest beginning of `tokens` that is in the tenant's tree."""
        self._clock += 1
        node = self._roots.get(tenant)
        pages: list[int] = []
        while node is not None:
            rest = tuple(tokens[len(pages) * PAGE_SIZE : (len(pages) + 1) * PAGE_SIZE])
            place = node.place(rest)
            near = node.children[max(0, place - 1) : place + 1]
            best = max(near, key=lambda child: _common(child.tokens, rest), default=None)
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
        node = self._root(tenant)
        for index, page in enumerate(pages):
            part = tuple(tokens[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            if not part:
                return
            node = self._child(node, part, page)
            if len(node.tokens) < PAGE_SIZE:
                return

    def restore(self, tenant: str, saved: Sequence[SavedPage]) -> None:
        """Remember the result of `saved_pages`, on pages that hold it again, as used in the same order."""
        nodes: list[_Node] = []
        for index, (tokens, page, parent) in enumerate(saved):
            nodes.append(self._child(nodes[parent] if parent >= 0 else self._root(tenant), tokens, page))
            nodes[-1].last_used += len(saved) - index
        self._clock += len(saved)

    def saved_pages(self, tenant: str, most: int) -> list[SavedPage]:
        """At most `most` of a tenant's pages, each after its parent: the sequences that were used last. The last
        sequence may be cut at its end."""
        places: dict[int, int] = {}  # id of a node -> its place in the list
        saved: list[SavedPage] = []
        root = self._roots.get(tenant)
        leaves = [node for node in self._below([root] if root else []) if not node.children]
        for leaf in sorted(leaves, key=lambda node: -node.last_used):
            if len(saved) == most:
                break
            path = [leaf]
            while path[-1].parent is not None and path[-1].parent is not root:
                path.append(path[-1].parent)
            new = [node for node in reversed(path) if id(node) not in places]
            for node in new[: most - len(saved)]:
                places[id(node)] = len(saved)
                saved.append(SavedPage(node.tokens, node.page, places.get(id(node.parent), -1)))
        return saved

    def evict(self) -> bool:
        """Give back the least recently used page that only the tree holds. False: there is none."""
        oldest = self._oldest()
        if oldest is None:  # look anew: what was used since the last look, or shared, is not in the heap
            self._idle = [(node.last_used, node.page, node) for node in self._nodes() if self._is_idle(node)]
            heapq.heapify(self._idle)
            oldest = self._oldest()
        if oldest is None or oldest.parent is None:
            return False
        parent = oldest.parent
        self._remove(parent, parent.place(oldest.tokens))
        if self._is_idle(parent):
            heapq.heappush(self._idle, (parent.last_used, parent.page, parent))
        return True

    def clear(self) -> None:
        """Forget all, and give the pages back."""
        for node in list(self._nodes()):
            node.parent = None
            self._pool.release(node.page)
        self._roots.clear()
        self._idle.clear()
        self.n_pages = 0

    @property
    def n_evictable(self) -> int:
        """Pages that `evict` would give back, one after the other: only the tree holds them and all that follow."""
        n_pages = 0
        staying: set[int] = set()  # ids of nodes that are followed by pages in use
        for node in reversed(list(self._nodes())):  # what follows a page comes before it
            if id(node) in staying or self._pool.is_shared(node.page):
                staying.add(id(node.parent))
            else:
                n_pages += 1
        return n_pages

    def _root(self, tenant: str) -> _Node:
        if tenant not in self._roots:
            self._roots = {name: root for name, root in self._roots.items() if root.children}  # clients name tenants
            self._roots[tenant] = _Node((), -1, None, 0)
        return self._roots[tenant]

    def _child(self, parent: _Node, tokens: tuple[int, ...], page: int) -> _Node:
        """The node that holds tokens after its parent: the existing one, or a new one on the page."""
        place = parent.place(tokens)
        if place == len(parent.children) or parent.children[place].tokens[: len(tokens)] != tokens:
            place = self._add(parent, place, tokens, page)
        node = parent.children[place]
        node.last_used = self._clock
        return node

    def _add(self, parent: _Node, place: int, tokens: tuple[int, ...], page: int) -> int:
        """Add a node at its place, and return it; a shorter node that it continues gives way."""
        if place and parent.children[place - 1].tokens == tokens[: len(parent.children[place - 1].tokens)]:
            place -= 1
            self._remove(parent, place)
        parent.children.insert(place, _Node(tokens, page, parent, self._clock))
        self.n_inserted += 1
        self.n_pages += 1
        self._pool.share(page)
        return place

    def _remove(self, parent: _Node, place: int) -> None:
        node = parent.children.pop(place)
        node.parent = None
        self.n_pages -= 1
        self._pool.release(node.page)

    def _is_idle(self, node: _Node) -> bool:
        """Whether only the tree holds its page, and no page follows it."""
        return node.parent is not None and not node.children and not self._pool.is_shared(node.page)

    def _oldest(self) -> _Node | None:
        """Take the least recently used idle node from the heap."""
        while self._idle:
            last_used, _, node = heapq.heappop(self._idle)
            if node.last_used == last_used and self._is_idle(node):
                return node
        return None

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
