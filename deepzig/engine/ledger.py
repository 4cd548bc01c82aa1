"""Ledger: how requests end, counts over all of them, and whose readers must be notified.

Kept by `engine` and `step_sampling`; calls `scheduler`, which frees the pages of those that end. Knows nothing of the
model.
"""

from collections import Counter

from deepzig.engine.request import Branch, Request
from deepzig.engine.results import EngineStats
from deepzig.engine.scheduler import Scheduler


class Ledger:
    """The requests of an engine: counts, as in `EngineStats`, and ends."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.updated: set[Request] = set()  # since `notify`
        self.answer_tokens = 0
        self._prompt_tokens = self._cached_tokens = self._drafted_tokens = self._accepted_tokens = 0
        self._finished: Counter[str] = Counter()
        self._scheduler = scheduler

    def note_first_token(self, request: Request, now: float) -> None:
        """Note a request's first token, once: its prompt has been prefilled."""
        if request.first_token is None:
            request.first_token = now
            self._prompt_tokens += request.n_prompt
            self._cached_tokens += request.n_cached

    def note_draft(self, request: Request, n_drafted: int, n_accepted: int) -> None:
        """Note that a branch has drafted tokens, and how many the model accepted."""
        request.n_drafted += n_drafted
        request.n_accepted += n_accepted
        self._drafted_tokens += n_drafted
        self._accepted_tokens += n_accepted

    def finish(self, branch: Branch, reason: str, *, keep: bool = True) -> None:
        """End a branch and free its pages. keep: later requests may find them, as a prefix."""
        request = branch.request
        branch.is_finished = True
        self._scheduler.remove(branch, keep=keep)
        self.updated.add(request)
        if all(each.is_finished for each in request.branches):
            request.finish_reason = reason
            self._finished[reason] += 1

    def fail(self, request: Request, error: BaseException) -> None:
        """End a request with an error, which its reader will see, and drop its pages."""
        request.error = error
        for branch in request.branches:
            if not branch.is_finished:
                self.finish(branch, "error", keep=False)

    def notify(self) -> None:
        """Call `on_update` of the requests that have changed since the last call."""
        updated, self.updated = self.updated, set()
        for request in updated:
            if request.on_update is not None:
                request.on_update()

    def stats(self) -> EngineStats:
        """Counts so far."""
        pool, prefixes = self._scheduler.pool, self._scheduler.prefixes
        return EngineStats(
            n_waiting=len(self._scheduler.waiting),
            n_running=len(self._scheduler.running),
            n_pages=pool.n_pages,
            n_held_pages=pool.n_pages - pool.n_free,
            n_prefix_pages=prefixes.n_pages,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            answer_tokens=self.answer_tokens,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            preemptions=self._scheduler.n_preemptions,
            finished=dict(self._finished),
        )
