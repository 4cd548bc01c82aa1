"""Engine: many requests over one model. Each step prefills chunks of prompts and decodes all other sequences.

Called by `engine_thread`, which gives it a thread; calls `scheduler`, which says what a step computes, the model, and
`step_sampling`, which goes on from its logits. Not safe to call from several threads. Knows nothing of text or HTTP.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepzig.engine.beams import new_search
from deepzig.engine.context_shift import KEPT_PAGES, ContextShift
from deepzig.engine.ledger import Ledger
from deepzig.engine.logit_rows import LogitRows
from deepzig.engine.number_checks import as_integer
from deepzig.engine.prompt_cache import PromptCache
from deepzig.engine.request import Branch, Request
from deepzig.engine.results import EngineStats
from deepzig.engine.rows import branch_rows
from deepzig.engine.sampling import Sampler, SamplingParams, TokenConstraint
from deepzig.engine.scheduler import MAX_RUNNING, Scheduler
from deepzig.engine.speculation import Speculator
from deepzig.engine.step_sampling import StepSampler
from deepzig.errors import ContextLengthError, RequestError
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel, Observer


class Engine:
    """Continuous batching over a paged latent cache with prefix reuse."""

    def __init__(self, model: DeepseekModel, n_cache_tokens: int, *, context_shift: bool = False) -> None:
        """n_cache_tokens: room in the cache for all requests and for prefixes of finished ones. context_shift: a
        sequence that fills the context loses its oldest tokens and goes on, see `ContextShift`."""
        self.observer: Observer | None = None  # of every step of the main model
        self.model = model
        self._cache = model.make_cache(n_cache_tokens)
        # tokens of a prompt and its answer together
        self.n_context = min(model.config.max_position_embeddings, self._cache.n_pages * PAGE_SIZE)
        self._shift = ContextShift(self.n_context) if context_shift else None
        self._speculator = Speculator(model, self._cache, self.n_context)
        self._scheduler = Scheduler(self._cache, model.prompt_form, self._speculator.length)
        self._ledger = Ledger(self._scheduler)
        self._sampler = StepSampler(self._scheduler, self._speculator, self._ledger)
        self._prompt_cache: PromptCache | None = None
        self._n_submitted = 0

    def make_request(
        self,
        prompt_ids: np.ndarray,
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        *,
        tenant: str = "",
        priority: int = 0,
        constraint: TokenConstraint | None = None,
    ) -> Request:
        """A request, checked but not submitted. Changes nothing, so that any thread may call it.

        Args:
            prompt_ids: i32 (S,), at least one, all in the vocabulary.
            params: resolved, see `Request`.
            eos_token_ids: the model's; they end an answer unless params ignore them.
            tenant: requests share prefixes only with requests of the same tenant.
            priority: higher ones are served first, and make running ones wait; equal ones in order of arrival.
            constraint: which tokens may follow; used by this request alone.

        Raises:
            RequestError: the parameters do not fit the vocabulary, or `n` the engine; tenant is no text, or priority no
                integer.
            ContextLengthError: the prompt leaves no room for an answer in context or cache.
        """
        if not isinstance(tenant, str):
            raise RequestError(f"tenant {tenant!r} is no text")
        priority = as_integer("priority", priority)
        tokens = prompt_ids.tolist()
        shift = self._shift if params.num_beams == 1 else None
        if shift is not None:
            tokens = shift.without_oldest(tokens)
        if len(tokens) >= self.n_context:
            raise ContextLengthError(
                f"the prompt is too long: it has {len(tokens)} tokens, but there is room for {self.n_context}, one of "
                "them for the answer; cut it"
            )
        self._speculator.check(params.speculation)
        for name, number in (("n", params.n), ("num_beams", params.num_beams)):
            if number > MAX_RUNNING:
                raise RequestError(f"{name} {number} is above {MAX_RUNNING}, the sequences that are decoded together")
        longest = len(tokens) + params.max_tokens
        sampler = Sampler(params, tokens, self.model.config.vocab_size, constraint, eos_token_ids)
        request = Request(
            n_prompt=len(tokens),
            params=params,
            max_length=min(longest, self.n_context) if shift is None else longest,
            n_prompt_dropped=len(prompt_ids) - len(tokens),
            tenant=tenant,
            priority=priority,
        )
        branch = Branch(request, 0, tokens, sampler)
        if params.num_beams > 1:
            request.beam_search = new_search(branch, constraint, self._cache.n_pages, self.model.config.vocab_size)
        request.branches.append(branch)
        return request

    def submit(self, request: Request) -> None:
        """Queue a request from `make_request`."""
        self._n_submitted += 1
        request.number = self._n_submitted
        request.branches[0].drafting = self._speculator.begin(request)
        self._scheduler.add(request.branches[0])

    def cancel(self, request: Request, index: int | None = None, reason: str = "cancelled") -> None:
        """End a request, or one branch of it, and free the pages; does nothing if that is finished.

        A beam search ends as a whole, since its beams are no answers yet.
        """
        if request.beam_search is not None:
            index = None
        for branch in request.branches:
            if not branch.is_finished and index in (None, branch.index):
                self._ledger.finish(branch, reason)

    def fail(self, request: Request, error: BaseException) -> None:
        """End a request with an error, which its reader will see, and drop its pages."""
        self._ledger.fail(request, error)

    def fail_all(self, error: BaseException) -> None:
        """End every request with the error."""
        for branch in self._scheduler.running + self._scheduler.waiting:
            self.fail(branch.request, error)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache: after a step that failed, what pages hold is not known."""
        self._scheduler.prefixes.clear()

    def step(self) -> bool:
        """Prefill chunks of prompts and decode each other running sequence. False: nothing to do."""
        self._shift_contexts()
        plan = self._scheduler.plan()
        if not plan.prefills and not plan.decoding:
            return False
        prefilled: list[Branch] = []  # to their end: the next token can be sampled
        hidden: list[np.ndarray] = []
        for chunks in self._batches(plan.prefills):
            for branch, last_row in self._prefill(chunks):
                prefilled.append(branch)
                hidden.append(last_row)
        started = time.perf_counter()
        drafts = self._speculator.draft(plan.decoding, plan.n_drafts)
        drafted = time.perf_counter()
        if plan.decoding:
            hidden.append(self._decode(plan.decoding, drafts))
        if not hidden:
            return True
        all_hidden = hidden[0] if len(hidden) == 1 else np.concatenate(hidden)
        logits = self.model.logits(all_hidden)
        now = time.perf_counter()
        rows = LogitRows(logits, now)
        for row, branch in enumerate(prefilled):
            self._sampler.sample_prefilled(branch, rows, row)
        if not plan.prefills:
            self._speculator.note_step(len(logits), now - drafted)
        self._sampler.sample_decoded(plan.decoding, drafts, all_hidden, rows, len(prefilled), now - started)
        return True

    def open_prompt_cache(self, directory: Path, made_for: Mapping[str, str]) -> None:
        """Load the prefixes from the file in a folder, before any request. Raises as `PromptCache`."""
        vocab_size = self.model.config.vocab_size
        self._prompt_cache = PromptCache(directory, made_for, self._scheduler, self._cache, vocab_size)
        self._prompt_cache.load()

    def save_prompt_cache(self) -> None:
        """Write the cached prefixes to the file that `open_prompt_cache` opened, if any."""
        if self._prompt_cache is not None:
            self._prompt_cache.save()

    def notify(self) -> None:
        """Call `on_update` of the requests that have changed since the last call."""
        self._ledger.notify()

    @property
    def shifts_context(self) -> bool:
        """Prompts may be longer than the context."""
        return self._shift is not None

    @property
    def n_active(self) -> int:
        """Branches that are queued or running."""
        return len(self._scheduler.waiting) + len(self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Branches in the queue."""
        return len(self._scheduler.waiting)

    def queue_position(self, request: Request) -> int:
        """The request's place in the queue, from 1; 0 if it does not wait."""
        waiting = list(self._scheduler.waiting)  # a copy: the caller's thread may be another
        return next((i for i, branch in enumerate(waiting, 1) if branch.request is request), 0)

    def stats(self) -> EngineStats:
        """Counts so far."""
        return self._ledger.stats()

    # ---- computing

    def _shift_contexts(self) -> None:
        """Drop the oldest tokens of sequences whose next token has no place in the context."""
        for branch in [branch for branch in self._scheduler.running if len(branch.tokens) > self.n_context]:
            assert self._shift is not None
            moved = self._scheduler.drop_oldest(branch, KEPT_PAGES, self._shift.dropped_pages)
            first = KEPT_PAGES * PAGE_SIZE
            self.model.shift_pages(self._cache, moved, first + self._shift.tokens_at_a_time, first)

    def _batches(self, prefills: list[tuple[Branch, int]]) -> list[list[tuple[Branch, int]]]:
        """The chunks of each call of the model: one form of attention, and all short or all long; alone if batching
        changes bits."""
        if not self.model.batches_prefills:
            return [[chunk] for chunk in prefills]
        by_kind: dict[tuple[str, bool], list[tuple[Branch, int]]] = {}
        for branch, stop in prefills:
            kind = branch.form, self.model.is_short(stop - branch.n_computed)
            by_kind.setdefault(kind, []).append((branch, stop))
        return list(by_kind.values())

    def _prefill(self, chunks: list[tuple[Branch, int]]) -> list[tuple[Branch, np.ndarray]]:
        """Prefill each branch's tokens before `stop`, all in one form of attention. Returns the branches whose last
        token is computed now, with f32 (1, D) of it after the final norm."""
        branches = [branch for branch, _ in chunks]
        spans = [range(branch.n_computed, stop) for branch, stop in chunks]
        tokens = [token for branch, stop in chunks for token in branch.tokens[branch.n_computed : stop]]
        ends = any(stop == len(branch.tokens) for branch, stop in chunks)
        hidden = self.model.forward_ahead(
            np.array(tokens, np.int32),
            branch_rows(branches, spans, is_prompt=True),
            self._cache,
            form=branches[0].form,
            observer=self.observer,
            is_wanted=ends or any(map(self._speculator.reads_prompt, branches)),
        )
        n_ahead = 0 if ends else self.model.n_ahead
        self._speculator.follow_prompts(list(zip(branches, spans, strict=True)), hidden, n_ahead)
        for branch, span in zip(branches, spans, strict=True):
            self._note_prefill(branch, span)
        last_rows = np.cumsum([len(span) for span in spans]) - 1
        return [
            (branch, hidden()[row : row + 1])
            for branch, row in zip(branches, last_rows, strict=True)
            if branch.n_computed == len(branch.tokens)
        ]

    def _note_prefill(self, branch: Branch, span: range) -> None:
        """Record that a span of positions of a branch has been prefilled."""
        request = branch.request
        branch.n_computed = span.stop
        if request.n_prefilled < request.n_prompt:
            request.n_prefilled = min(span.stop, request.n_prompt)
            self._ledger.updated.add(request)

    def _decode(self, branches: list[Branch], drafts: list[list[int]]) -> np.ndarray:
        """Run the last token of each branch and its draft tokens: f32 (T, D) after the final norm, branch by branch."""
        drafted = list(zip(branches, drafts, strict=True))
        tokens = [token for branch, draft in drafted for token in (branch.tokens[-1], *draft)]
        spans = [range(branch.n_computed, branch.n_computed + 1 + len(draft)) for branch, draft in drafted]
        rows = branch_rows(branches, spans, is_prompt=False)
        return self.model.forward(np.array(tokens, np.int32), rows, self._cache, observer=self.observer)
