"""Scheduler: which branches compute in the next step, and on which pages of the cache.

First in, first out within a priority. When pages run out, cached prefixes are evicted first, then the least urgent
running branch is preempted: it goes back to the queue, and what it lost is recomputed later. A branch that waits for
pages or a place preempts those of a lower priority. Called by `engine`, `step_sampling` and `ledger`; calls `pages`,
`prefix` and the cache's `copy_page`. Knows nothing of the model's arithmetic nor of sampling.
"""

import time
from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

from deepzig.engine.pages import PagePool
from deepzig.engine.prefix import PrefixTree
from deepzig.engine.request import Branch
from deepzig.model.cache import PAGE_SIZE, LatentCache

PREFILL_CHUNK = 1024  # tokens of a chunk of a prompt: enough that each expert's weights serve many of them
MAX_RUNNING = 64  # branches that are decoded together


class Plan(NamedTuple):
    """What a step computes; every branch has pages for its new tokens."""

    prefills: list[tuple[Branch, int]]  # branch, and where its chunk stops, as in a range
    decoding: list[Branch]
    n_drafts: list[int]  # draft tokens that each of `decoding` may have


class Scheduler:
    """Waiting and running branches, and the pages they hold."""

    def __init__(
        self,
        cache: LatentCache,
        prompt_form: Callable[[int, int], str],
        draft_length: Callable[[Branch, int], int],
    ) -> None:
        """prompt_form: form of attention for (new tokens, length of the sequence). draft_length: draft tokens that a
        branch wants when that many decode."""
        self.pool = PagePool(cache.n_pages)
        self.prefixes = PrefixTree(self.pool)
        self.waiting: list[Branch] = []  # both in order of urgency
        self.running: list[Branch] = []
        self.n_preemptions = 0
        self._cache = cache
        self._prompt_form = prompt_form
        self._draft_length = draft_length

    def add(self, branch: Branch) -> None:
        """Put a branch into the queue."""
        insort(self.waiting, branch, key=_urgency)

    def fork(self, branch: Branch, copies: list[Branch]) -> None:
        """Let copies of a running branch run too, on its pages, which are copied on write."""
        for copy in copies:
            copy.pages, copy.n_computed = list(branch.pages), branch.n_computed
            for page in copy.pages:
                self.pool.share(page)
            insort(self.running, copy, key=_urgency)

    def remove(self, branch: Branch, *, keep: bool) -> None:
        """Take a branch out for good. keep: its pages, the partly filled one too, go to the prefix cache."""
        (self.running if branch in self.running else self.waiting).remove(branch)
        if keep:
            self.cache_sequence(branch)
        self._drop_pages(branch)

    def cache_sequence(self, branch: Branch) -> None:
        """Put what is computed of a branch into the prefix tree, unless its rows have seen tokens that were dropped
        since."""
        if branch.n_computed and not branch.is_shifted:
            n_pages = -(-branch.n_computed // PAGE_SIZE)
            self.prefixes.insert(branch.request.tenant, branch.tokens[: branch.n_computed], branch.pages[:n_pages])

    def cache_prompt(self, branch: Branch) -> None:
        """Put the computed whole pages of a prompt into the tree, with the same exception as `cache_sequence`."""
        n_full = 0 if branch.is_shifted else min(branch.request.n_prompt, branch.n_computed) // PAGE_SIZE
        self.prefixes.insert(branch.request.tenant, branch.tokens[: n_full * PAGE_SIZE], branch.pages[:n_full])

    def plan(self) -> Plan:
        """The next step: chunks of prompts, at most PREFILL_CHUNK tokens in all, and all that decode."""
        self._admit()
        n_preemptions = self.n_preemptions
        prefills: list[tuple[Branch, int]] = []
        decoding: list[Branch] = []
        budget = PREFILL_CHUNK
        for branch in list(self.running):
            if self.n_preemptions > n_preemptions and branch not in self.running:  # gave way to a more urgent one
                continue
            if branch.logits is not None:  # a beam that waits for the others
                continue
            if not branch.is_prefilling:
                if self._allocate(branch, len(branch.tokens)):
                    decoding.append(branch)
                continue
            stop = min(branch.n_computed + PREFILL_CHUNK, len(branch.tokens))  # never cut by the budget
            n_new = stop - branch.n_computed
            if n_new <= budget and self._allocate(branch, stop):
                prefills.append((branch, stop))
                budget -= n_new
        if self.n_preemptions > n_preemptions:
            prefills = [(branch, stop) for branch, stop in prefills if branch in self.running]
            decoding = [branch for branch in decoding if branch in self.running]
        return Plan(prefills, decoding, [self._allocate_drafts(branch, len(decoding)) for branch in decoding])

    def replace(self, old: list[Branch], new: list[Branch], parents: list[int]) -> None:
        """Let the beams of the next step run in place of the last ones, each on the pages of old[parent]."""
        for branch, parent in zip(new, parents, strict=True):
            self.fork(old[parent], [branch])
        for branch in old:
            self.remove(branch, keep=False)

    def drop_oldest(self, branch: Branch, kept_pages: int, dropped_pages: int) -> list[int]:
        """Take dropped_pages after the first kept_pages from a running branch, with their tokens.

        Returns the pages that follow, now held by the branch alone. There are none if they could not be copied for want
        of room: then the branch waits, to be recomputed.
        """
        stop = kept_pages + dropped_pages
        for page in branch.pages[kept_pages:stop]:
            self.pool.release(page)
        del branch.pages[kept_pages:stop]
        del branch.tokens[kept_pages * PAGE_SIZE : stop * PAGE_SIZE]
        branch.n_dropped += dropped_pages * PAGE_SIZE
        branch.n_computed -= dropped_pages * PAGE_SIZE
        branch.is_shifted, branch.drafting = True, None
        if not all(self._own(branch, block) for block in range(kept_pages, len(branch.pages))):
            self._preempt(branch)
        return branch.pages[kept_pages:]

    # ---- who runs

    def _admit(self) -> None:
        """Start waiting branches, most urgent first, while there are places, and pages for their tokens. Those of a
        lower priority give way."""
        while self.waiting:
            branch = self.waiting[0]
            group = self._group(branch)
            n_branches = len(group) if len(branch.request.branches) > 1 else branch.request.max_branches
            staying = [each for each in self.running if each.request.priority >= branch.request.priority]
            if staying and self._n_to_run(staying) + n_branches > MAX_RUNNING:
                return
            for each in group:
                self._reuse_prefix(each)
            n_new = sum(len(each.tokens) // PAGE_SIZE + 1 - len(each.pages) for each in group)
            held = {page for each in (*staying, *group) for page in each.pages}
            fits = not staying or n_new <= self.pool.n_pages - len(held)  # if all others gave way
            while self.running and not (
                fits and self._n_to_run(self.running) + n_branches <= MAX_RUNNING and self._free_pages(n_new)
            ):
                if not fits or len(self.running) == len(staying):
                    for each in group:
                        self._drop_pages(each)
                    return
                self._preempt(self.running[-1])
            for each in group:
                self.waiting.remove(each)
                insort(self.running, each, key=_urgency)
            if branch.request.started is None:
                branch.request.started = time.perf_counter()

    def _n_to_run(self, running: list[Branch]) -> int:
        """Branches of `running`, and those into which their requests have yet to fork."""
        unforked = [branch.request for branch in running if len(branch.request.branches) == 1]
        return len(running) + sum(request.max_branches - 1 for request in unforked)

    def _group(self, branch: Branch) -> list[Branch]:
        """The branches that run and wait with this one: all beams of a search, since they go step by step."""
        return list(branch.request.branches) if branch.request.beam_search is not None else [branch]

    def _reuse_prefix(self, branch: Branch) -> None:
        """Take what the prefix tree has of the branch's tokens; at least one is left to compute."""
        request = branch.request
        match = self.prefixes.match(request.tenant, branch.tokens[:-1])
        for page in match.pages:
            self.pool.share(page)
        branch.pages = list(match.pages)
        branch.n_computed = len(match.pages) * PAGE_SIZE
        if match.partial_page is not None:
            self.pool.share(match.partial_page)  # so that no room for the copy is made by giving it away
            copy = self._allocate_page()
            self.pool.release(match.partial_page)  # the tree has it still
            if copy is not None:
                branch.pages.append(copy)  # first: copying may raise, and the branch's pages are given back then
                self._cache.copy_page(match.partial_page, copy)
                branch.n_computed += match.n_partial
        if branch.length == request.n_prompt:
            request.n_prefilled = branch.n_computed
            is_first = request.started is None  # a preempted one finds what it has computed itself
            request.n_cached = request.n_prefilled if is_first else min(request.n_cached, request.n_prefilled)
        branch.form = self._prompt_form(len(branch.tokens) - branch.n_computed, len(branch.tokens))

    def _preempt(self, branch: Branch) -> None:
        """Put a branch back into the queue. Its tokens are kept; what the prefix tree loses of them is recomputed."""
        self.n_preemptions += 1
        for each in self._group(branch):
            self.running.remove(each)
            self.cache_sequence(each)
            self._drop_pages(each)
            each.logits = None
            self.add(each)

    # ---- pages

    def _allocate(self, branch: Branch, n_tokens: int) -> bool:
        """Get pages for the first n_tokens; no other branch holds those that will be written. Preempts the least urgent
        branches for them; False if that was the branch itself."""
        first_written = branch.n_computed // PAGE_SIZE
        for block in range(first_written, -(-n_tokens // PAGE_SIZE)):
            while not self._own(branch, block):
                # Even the only one goes back: recomputed, it has pages of its own and needs no copies of shared ones.
                self._preempt(self.running[-1])
                if branch not in self.running:
                    return False
        return True

    def _own(self, branch: Branch, block: int) -> bool:
        """Make the branch the only holder of the page of a block: its own, a new one, or a copy. False: no page is
        free."""
        if block < len(branch.pages) and not self.pool.is_shared(branch.pages[block]):
            return True
        page = self._allocate_page()
        if page is None:
            return False
        if block == len(branch.pages):
            branch.pages.append(page)
        else:
            shared, branch.pages[block] = branch.pages[block], page
            self.pool.release(shared)  # others hold it still
            self._cache.copy_page(shared, page)
        return True

    def _allocate_drafts(self, branch: Branch, n_decoding: int) -> int:
        """Draft tokens of the branch, with pages for them; 0 where that would preempt anybody."""
        if branch.drafting is None:
            return 0
        n_drafts = self._draft_length(branch, n_decoding)
        n_new = -(-(len(branch.tokens) + n_drafts) // PAGE_SIZE) - len(branch.pages)
        if not n_drafts or not self._free_pages(n_new):
            return 0
        for _ in range(n_new):
            page = self.pool.take()
            assert page is not None
            branch.pages.append(page)
        return n_drafts

    def _free_pages(self, n_pages: int) -> bool:
        """Free n_pages by evicting cached prefixes. False, with none evicted, if they do not suffice."""
        n_missing = n_pages - self.pool.n_free
        if n_missing > 0 and self.prefixes.n_evictable < n_missing:
            return False
        for _ in range(n_missing):
            self.prefixes.evict()
        return True

    def _allocate_page(self) -> int | None:
        page = self.pool.take()
        while page is None and self.prefixes.evict():
            page = self.pool.take()
        return page

    def _drop_pages(self, branch: Branch) -> None:
        for page in branch.pages:
            self.pool.release(page)
        branch.reset()


def _urgency(branch: Branch) -> tuple[int, int, int]:
    """Sorts branches: by priority, then by arrival."""
    return (-branch.request.priority, branch.request.number, branch.index)
