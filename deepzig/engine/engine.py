"""Engine: many requests over one model. Each step reads pieces of prompts and decodes a token of every other text.

Called by `engine_thread`, which gives it a thread; calls `scheduler`, `model` and `sampling`. Not safe to call from
several threads. Knows nothing of text or HTTP.
"""

import time
from collections import Counter

import numpy as np

from deepzig.engine.beam_search import BeamSearch
from deepzig.engine.beams import advance_search, new_search, search_events
from deepzig.engine.context_shift import KEPT_PAGES, ContextShift
from deepzig.engine.logit_rows import LogitRows
from deepzig.engine.prompt_cache import PromptCache
from deepzig.engine.request import Branch, Request, TokenEvent
from deepzig.engine.results import EngineStats
from deepzig.engine.rows import branch_rows
from deepzig.engine.sampling import Sampler, SamplingParams, TokenConstraint
from deepzig.engine.scheduler import MAX_RUNNING, Scheduler
from deepzig.engine.speculation import Speculator
from deepzig.errors import ContextLengthError, RequestError
from deepzig.model.cache import PAGE_SIZE
from deepzig.model.deepseek import DeepseekModel, Observer


class Engine:
    """Continuous batching over a paged latent cache with prefix reuse."""

    def __init__(self, model: DeepseekModel, n_cache_tokens: int, *, context_shift: bool = False) -> None:
        """n_cache_tokens: room in the cache for all requests and for prefixes kept from finished ones. context_shift: a
        text that fills the context loses its oldest tokens and goes on, see `ContextShift`."""
        self.observer: Observer | None = None  # of every step of the main model
        self._model = model
        self._cache = model.make_cache(n_cache_tokens)
        # tokens of a prompt and its answer together
        self.room = min(model.config.max_position_embeddings, self._cache.n_pages * PAGE_SIZE)
        self._shift = ContextShift(self.room) if context_shift else None
        self._speculator = Speculator(model, self._cache)
        self._scheduler = Scheduler(self._cache, model.prompt_form, self._draft_length)
        self._news: set[Request] = set()  # requests that this step moved
        self._n_submitted = 0
        self._tokens_prompt = self._tokens_cached = self._tokens_decoded = 0
        self._tokens_drafted = self._tokens_accepted = 0
        self._finished: Counter[str] = Counter()

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
            params: settled, see `Request`.
            tenant: requests share prefixes only with requests of the same tenant.
            priority: higher ones are served first; equal ones in order of arrival.
            constraint: which tokens may follow; used by this request alone.

        Raises:
            RequestError: the parameters do not fit the vocabulary, or `n` the engine; tenant is no text, or priority no
                integer.
            ContextLengthError: the prompt leaves no room for an answer in context or cache.
        """
        if not isinstance(tenant, str):
            raise RequestError(f"tenant {tenant!r} is no text")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise RequestError(f"priority {priority!r} is no integer")
        tokens = prompt_ids.tolist()
        may_shift = self._shift is not None and params.num_beams == 1
        if self._shift is not None and may_shift:
            tokens = self._shift.cut(tokens)
        if len(tokens) >= self.room:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens, but there is room for {self.room}; shorten it"
            )
        self._speculator.check(params.speculation)
        for name, number in (("n", params.n), ("num_beams", params.num_beams)):
            if number > MAX_RUNNING:
                raise RequestError(f"{name} {number} is above {MAX_RUNNING}, the texts that are continued together")
        longest = len(tokens) + params.max_tokens
        request = Request(
            n_prompt=len(tokens),
            params=params,
            eos_token_ids=eos_token_ids,
            max_length=longest if may_shift else min(longest, self.room),
            n_cut=len(prompt_ids) - len(tokens),
            tenant=tenant,
            priority=priority,
        )
        if params.num_beams > 1:
            request.beam_search = new_search(request, constraint, self._cache.n_pages, self._model.config.vocab_size)
        sampler = Sampler(params, tokens, self._model.config.vocab_size, constraint, eos_token_ids)
        request.branches.append(Branch(request, 0, tokens, sampler))
        return request

    def submit(self, request: Request) -> None:
        """Queue a request from `make_request`."""
        self._n_submitted += 1
        request.number = self._n_submitted
        request.branches[0].drafting = self._speculator.begin(request)
        self._scheduler.add(request.branches[0])

    def cancel(self, request: Request, index: int | None = None, reason: str = "cancelled") -> None:
        """End a request, or one branch of it, and free the pages; does nothing if that is finished.

        A beam search ends as a whole: its beams are no answers yet.
        """
        if request.beam_search is not None:
            index = None
        for branch in request.branches:
            if not branch.is_finished and index in (None, branch.index):
                self._finish(branch, reason)

    def fail(self, request: Request, error: BaseException) -> None:
        """End a request with an error, which its reader will see; nothing of it is kept."""
        request.error = error
        for branch in request.branches:
            if not branch.is_finished:
                self._finish(branch, "error", keep=False)

    def fail_all(self, error: BaseException) -> None:
        """End every request with the error."""
        for branch in self._scheduler.running + self._scheduler.waiting:
            self.fail(branch.request, error)

    def step(self) -> bool:
        """Read pieces of prompts and decode each other running text. False: nothing to do."""
        self._make_context()
        plan = self._scheduler.plan()
        if not plan.reading and not plan.decoding:
            return False
        read: list[Branch] = []  # to their end: the next token can be chosen
        hidden: list[np.ndarray] = []
        for pieces in self._together(plan.reading):
            for (branch, _), piece in zip(pieces, self._read(pieces), strict=True):
                if branch.n_computed == len(branch.tokens):
                    read.append(branch)
                    hidden.append(piece[-1:])
        started = time.perf_counter()
        drafts = self._speculator.draft(plan.decoding, plan.n_drafts)
        drafted = time.perf_counter()
        if plan.decoding:
            hidden.append(self._decode(plan.decoding, drafts))
        if not hidden:
            return True
        all_hidden = hidden[0] if len(hidden) == 1 else np.concatenate(hidden)
        logits = self._model.logits(all_hidden)
        now = time.perf_counter()
        rows = LogitRows(logits, now)
        for row, branch in enumerate(read):
            self._choose_first(branch, rows, row)
        if not plan.reading:
            self._speculator.note_step(len(logits), now - drafted)
        self._choose_decoded(plan.decoding, drafts, all_hidden, rows, len(read), now - started)
        return True

    def restore_prompts(self, prompts: PromptCache) -> None:
        """Take the prefixes of a file; before any request."""
        prompts.load(self._scheduler, self._cache, self._model.config.vocab_size)

    def save_prompts(self, prompts: PromptCache) -> None:
        """Write the kept prefixes to a file."""
        prompts.save(self._scheduler, self._cache)

    def tell(self) -> None:
        """Call `on_news` of the requests that have moved since the last call."""
        news, self._news = self._news, set()
        for request in news:
            if request.on_news is not None:
                request.on_news()

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
        pool, prefixes = self._scheduler.pool, self._scheduler.prefixes
        return EngineStats(
            n_waiting=len(self._scheduler.waiting),
            n_running=len(self._scheduler.running),
            n_pages=pool.n_pages,
            n_held_pages=pool.n_pages - pool.n_free,
            n_prefix_pages=prefixes.n_pages,
            tokens_prompt=self._tokens_prompt,
            tokens_cached=self._tokens_cached,
            tokens_decoded=self._tokens_decoded,
            tokens_drafted=self._tokens_drafted,
            tokens_accepted=self._tokens_accepted,
            preemptions=self._scheduler.n_preemptions,
            finished=dict(self._finished),
        )

    # ---- computing

    def _draft_length(self, branch: Branch, n_decoding: int) -> int:
        """Guesses to make; none past the context, since there the oldest tokens must go first."""
        return min(self._speculator.length(branch, n_decoding), max(0, self.room - len(branch.tokens)))

    def _make_context(self) -> None:
        """Drop the oldest tokens of texts whose next token has no place in the context."""
        for branch in [branch for branch in self._scheduler.running if len(branch.tokens) > self.room]:
            assert self._shift is not None
            moved = self._scheduler.drop_oldest(branch, KEPT_PAGES, self._shift.dropped_pages)
            first = KEPT_PAGES * PAGE_SIZE
            self._model.move_pages(self._cache, moved, first + self._shift.n_dropped, first)

    def _together(self, reading: list[tuple[Branch, int]]) -> list[list[tuple[Branch, int]]]:
        """Pieces of prompts that go through the model in one call: if company changes no bit, all of one form that are
        short, or that are not."""
        if not self._model.reads_together:
            return [[piece] for piece in reading]
        by_kind: dict[tuple[str, bool], list[tuple[Branch, int]]] = {}
        for branch, last in reading:
            kind = branch.form, self._model.is_short(last - branch.n_computed)
            by_kind.setdefault(kind, []).append((branch, last))
        return list(by_kind.values())

    def _read(self, pieces: list[tuple[Branch, int]]) -> list[np.ndarray]:
        """Each branch's tokens up to `last`, all of one form of attention: f32 (T, D) of each after the final norm."""
        branches = [branch for branch, _ in pieces]
        spans = [range(branch.n_computed, last) for branch, last in pieces]
        tokens = [token for branch, last in pieces for token in branch.tokens[branch.n_computed : last]]
        rows = branch_rows(branches, spans, is_prompt=True)
        all_hidden = self._model.forward(
            np.array(tokens, np.int32), rows, self._cache, form=branches[0].form, observer=self.observer
        )
        hidden = np.split(all_hidden, np.cumsum([len(span) for span in spans])[:-1])
        for branch, span, piece in zip(branches, spans, hidden, strict=True):
            self._note_read(branch, span, piece)
        return hidden

    def _note_read(self, branch: Branch, span: range, hidden: np.ndarray) -> None:
        """A branch has been read in a span of positions: hidden f32 (T, D)."""
        request = branch.request
        self._speculator.follow_prompt(branch, span.start, hidden)
        branch.n_computed = span.stop
        if request.n_read < request.n_prompt:
            request.n_read = min(span.stop, request.n_prompt)
            self._news.add(request)
        if span.stop >= request.n_prompt > span.start:
            self._scheduler.keep_prompt(branch)

    def _decode(self, branches: list[Branch], drafts: list[list[int]]) -> np.ndarray:
        """The last token of each branch and its guesses: f32 (T, D) after the final norm, branch by branch."""
        drafted = list(zip(branches, drafts, strict=True))
        tokens = [token for branch, guesses in drafted for token in (branch.tokens[-1], *guesses)]
        spans = [range(branch.n_computed, branch.n_computed + 1 + len(guesses)) for branch, guesses in drafted]
        rows = branch_rows(branches, spans, is_prompt=False)
        return self._model.forward(np.array(tokens, np.int32), rows, self._cache, observer=self.observer)

    def _choose_first(self, branch: Branch, rows: LogitRows, row: int) -> None:
        """The token behind a text that has been read. A prompt forks into n here."""
        if branch.request.beam_search is not None:
            self._take_beam(branch, rows.logits[row], branch.request.beam_search, rows.time)
            return
        branches = [branch]
        if len(branch.request.branches) < branch.request.params.n:
            try:
                branches += self._fork(branch)
            except BaseException as error:  # of a constraint: a panic of its library's Rust is no Exception
                self.fail(branch.request, error)
                return
        for each in branches:
            self._choose_token(each, rows, row)

    def _choose_decoded(
        self,
        branches: list[Branch],
        drafts: list[list[int]],
        hidden: np.ndarray,
        rows: LogitRows,
        first: int,
        seconds: float,
    ) -> None:
        """The next tokens of each branch, from the rows, `first` and on, of its last token and of its guesses.
        hidden f32 (T, D) of all rows; the step has taken `seconds`."""
        for branch, guesses in zip(branches, drafts, strict=True):
            if branch.drafting is not None:
                n_chosen = self._choose_guessed(branch, guesses, rows, first)
                self._speculator.note_branch(branch, len(guesses), n_chosen, seconds, len(branches))
                self._speculator.follow(branch, hidden[first : first + n_chosen])
            else:
                branch.n_computed += 1
                if branch.request.beam_search is not None:
                    self._take_beam(branch, rows.logits[first], branch.request.beam_search, rows.time)
                else:
                    self._choose_token(branch, rows, first)
            first += 1 + len(guesses)

    def _choose_guessed(self, branch: Branch, guesses: list[int], rows: LogitRows, first: int) -> int:
        """The next tokens of a branch, as far as its guesses are what was chosen; how many."""
        n_chosen = 0
        for row in range(first, first + 1 + len(guesses)):
            branch.n_computed += 1
            n_chosen += 1
            token = self._choose_token(branch, rows, row)
            if branch.is_finished or n_chosen > len(guesses) or token != guesses[n_chosen - 1]:
                break
        self._tokens_drafted += len(guesses)
        self._tokens_accepted += n_chosen - 1
        return n_chosen

    def _choose_token(self, branch: Branch, rows: LogitRows, row: int) -> int | None:
        """Append the token that follows from a row of logits, and return it. An error ends the branch's request alone;
        None then."""
        request = branch.request
        if branch.is_finished:
            return None
        try:
            token = rows.greatest(row) if branch.sampler.is_greedy else branch.sampler.choose(rows.logits[row])
            wants_logprob = request.params.logprobs is not None
            logprob = branch.sampler.logprob(rows.logits[row], token) if wants_logprob else None
            is_complete = branch.sampler.is_complete
        except BaseException as error:  # of a constraint, too: a panic of its library's Rust is no Exception
            self.fail(request, error)
            return None
        branch.tokens.append(token)
        self._tokens_decoded += 1
        if request.first_token is None:
            self._note_first_token(request, rows.time)
        reason = None
        if token in request.eos_token_ids or is_complete:
            reason = "stop"
        elif branch.length >= request.max_length:
            reason = "length"
        request.events.append(TokenEvent(branch.index, token, logprob, reason, rows.time))
        self._news.add(request)
        if reason is not None:
            self._finish(branch, reason)
        return token

    def _take_beam(self, branch: Branch, logits: np.ndarray, search: BeamSearch, now: float) -> None:
        """Keep logits f32 (vocab_size,) of a beam until all beams of its request have them; then take the next step."""
        request = branch.request
        branch.logits = logits
        if request.is_finished or any(beam.logits is None for beam in request.branches):
            return
        try:
            old, parents = advance_search(request, search)
        except Exception as error:
            self.fail(request, error)
            return
        self._note_first_token(request, now)
        self._tokens_decoded += max(1, len(parents))
        if parents:
            self._scheduler.replace(old, request.branches, parents)
            return
        request.events.extend(search_events(request, search, now))
        for beam in old:
            self._finish(beam, "stop" if search.finished[0].is_stopped else "length")

    def _note_first_token(self, request: Request, now: float) -> None:
        """The prompt has been read."""
        if request.first_token is None:
            request.first_token = now
            self._tokens_prompt += request.n_prompt
            self._tokens_cached += request.n_cached

    def _fork(self, branch: Branch) -> list[Branch]:
        """The other branches of a request whose prompt has just been read."""
        request = branch.request
        copies = [
            Branch(request, index, list(branch.tokens), branch.sampler.fork(index))
            for index in range(1, request.params.n)
        ]
        for copy in copies:
            copy.drafting = self._speculator.begin(request)
        request.branches += copies
        self._scheduler.run_on_pages_of(branch, copies)
        return copies

    def _finish(self, branch: Branch, reason: str, *, keep: bool = True) -> None:
        request = branch.request
        branch.is_finished = True
        self._scheduler.remove(branch, keep=keep)
        self._news.add(request)
        if all(each.is_finished for each in request.branches):
            request.finish_reason = reason
            self._finished[reason] += 1
