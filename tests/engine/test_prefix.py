"""PrefixTree: what it finds, for whom, and which pages it gives back first."""

import numpy as np

from deepzig.engine.pages import PagePool
from deepzig.engine.prefix import PrefixTree
from deepzig.model.cache import PAGE_SIZE

A, B, C = ([token] * PAGE_SIZE for token in (1, 2, 3))


def kept(tree: PrefixTree, pool: PagePool, tokens: list[int], tenant: str = "") -> list[int]:
    """Pages for tokens, which only the tree holds afterwards."""
    pages = [page for _ in range(-(-len(tokens) // PAGE_SIZE)) if (page := pool.take()) is not None]
    tree.insert(tenant, tokens, pages)
    for page in pages:
        pool.release(page)
    return pages


def n_found(tree: PrefixTree, tenant: str, tokens: list[int]) -> int:
    match = tree.match(tenant, tokens)
    return len(match.pages) * PAGE_SIZE + match.n_partial


def test_the_longest_beginning_is_found() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    pages = kept(tree, pool, [*A, *B, 7, 8])
    match = tree.match("", [*A, *B, 7, 9])
    assert (match.pages, match.partial_page, match.n_partial) == (pages[:2], pages[2], 1)
    assert n_found(tree, "", [*A, *C]) == PAGE_SIZE
    assert n_found(tree, "", C) == 0


def test_among_many_texts_the_longest_beginning_is_found() -> None:
    rng = np.random.default_rng(0)
    pool = PagePool(1000)
    tree = PrefixTree(pool)
    texts: list[list[int]] = [[]]
    for _ in range(200):
        begun = texts[rng.integers(len(texts))]
        text = [*begun[: rng.integers(len(begun) + 1)], *rng.integers(1, 3, rng.integers(1, 100)).tolist()]
        common = [sum(np.cumprod([a == b for a, b in zip(text, other, strict=False)])) for other in texts]
        assert n_found(tree, "", text) == max(common)
        kept(tree, pool, text)
        texts.append(text)
    assert tree.n_pages == pool.n_pages - pool.n_free


def test_pages_go_in_order_of_their_last_use_whatever_comes_between() -> None:
    rng = np.random.default_rng(0)
    pool = PagePool(100)
    tree = PrefixTree(pool)
    used: list[tuple[list[int], list[int]]] = []  # tokens and pages of the texts, the last used at the end

    def take() -> int:
        page = pool.take()
        if page is None:
            assert tree.evict()
            page = pool.take()
            assert page is not None and page == used[0][1].pop()
            if not used[0][1]:
                del used[0]
        return page

    for token in range(300):
        text, pages = [token] * 2 * PAGE_SIZE, [take(), take()]
        tree.insert("", text, pages)
        for page in pages:
            pool.release(page)
        used.append((text, pages))
        for _ in range(rng.integers(3)):
            again = used.pop(rng.integers(len(used)))
            assert tree.match("", again[0]).pages == again[1]
            used.append(again)


def test_tenants_find_only_their_own() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    kept(tree, pool, A, "one")
    assert [n_found(tree, tenant, A) for tenant in ("one", "two", "")] == [PAGE_SIZE, 0, 0]
    assert kept(tree, pool, A, "two") != tree.match("one", A).pages and tree.n_pages == 2


def test_what_was_used_last_goes_last() -> None:
    pool = PagePool(3)
    tree = PrefixTree(pool)
    pages = [kept(tree, pool, tokens)[0] for tokens in (A, B, C)]
    tree.match("", A)
    order = []
    while tree.evict():
        order.append(pool.take())
    assert order == [pages[1], pages[2], pages[0]]


def test_a_text_goes_from_its_end_and_pages_in_use_stay() -> None:
    pool = PagePool(3)
    tree = PrefixTree(pool)
    pages = kept(tree, pool, [*A, *B, *C])
    pool.share(pages[1])  # a request reads it
    assert tree.evict() and tree.match("", [*A, *B, *C]).pages == pages[:2]
    assert not tree.evict()
    pool.release(pages[1])
    assert tree.evict() and tree.match("", [*A, *B, *C]).pages == pages[:1]


def test_nothing_is_kept_twice_and_longer_ends_take_the_place_of_shorter() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    kept(tree, pool, [*A, 5, 6])
    kept(tree, pool, [*A, 5, 6])
    assert tree.n_pages == 2
    longer = kept(tree, pool, [*A, 5, 6, 7])
    assert tree.n_pages == 2 and tree.match("", [*A, 5, 6, 7]).partial_page == longer[1]
    assert pool.n_free == 6


def test_pages_that_can_be_had_are_counted_before_any_is_given_away() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    pages = kept(tree, pool, [*A, *B, *C])
    kept(tree, pool, [*A, *C, *B])
    assert tree.n_evictable == tree.n_pages == 5
    pool.share(pages[1])  # a request reads it: it stays, and so does the page before it
    assert tree.n_evictable == 3
    assert [tree.evict() for _ in range(4)] == [True, True, True, False]
    assert tree.n_evictable == 0


def test_saved_pages_come_back() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    kept(tree, pool, [*A, *B, 7, 8])
    kept(tree, pool, [*A, *C])
    saved = tree.saved_pages("", 8)
    again = PrefixTree(pool)
    again.restore("", saved)
    assert again.match("", [*A, *B, 7, 8]) == tree.match("", [*A, *B, 7, 8])
    assert again.match("", [*A, *C]) == tree.match("", [*A, *C])
    assert again.n_pages == 4


def test_of_a_sequence_without_room_the_beginning_is_saved() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    kept(tree, pool, [*A, *A])
    long = kept(tree, pool, [*B, *A, *C, *B, 7])
    saved = tree.saved_pages("", 3)
    assert [each.page for each in saved] == long[:3] and [each.parent for each in saved] == [-1, 0, 1]
    assert tree.saved_pages("", 6)[5].tokens == tuple(A) and tree.saved_pages("", 0) == []


def test_tenants_without_pages_are_forgotten() -> None:
    pool = PagePool(2)
    tree = PrefixTree(pool)
    for tenant in range(50):
        while pool.n_free == 0:
            tree.evict()
        kept(tree, pool, A, tenant=f"tenant {tenant}")
    assert len(tree._roots) <= pool.n_pages + 1


def test_all_is_forgotten_and_all_pages_come_back_but_those_in_use() -> None:
    pool = PagePool(8)
    tree = PrefixTree(pool)
    kept(tree, pool, [*A, *B, 7, 8])
    (used,) = kept(tree, pool, C, tenant="other")
    pool.share(used)
    tree.clear()
    assert (pool.n_free, tree.n_pages, tree.n_evictable) == (7, 0, 0)
    assert n_found(tree, "", A) == n_found(tree, "other", C) == 0
    assert not tree.evict()
    assert kept(tree, pool, A) and n_found(tree, "", A) == PAGE_SIZE
