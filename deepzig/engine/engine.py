"""Engine: many requests over one model. Each step reads pieces of prompts and decodes a token of every other text.

Called by `engine_thread`, which gives it a thread; calls `scheduler`, `model` and `sampling`. Not safe to call from
several threads. Knows nothing of text or HTTP.
"""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from deepzig.engine.request import Branch, Request, TokenEvent
from deepzig.engine.sampling import Sampler, SamplingParams, TokenConstraint
from deepzig.engine.scheduler import MAX_RUNNING, Scheduler
from deepzig.errors import ContextLengthError, RequestError
from deepzig.model.cache import PAGE_SIZE, Rows
from deepzig.model.deepseek import DeepseekModel


@dataclass(frozen=True)
class EngineStats:
    """Counts since the model was loaded, and what is held now."""

    n_waiting: int  # branches in the queue
    n_running: int  # branches that are read or decoded
    n_pages: int  # of the latent cache
    n_held_pages: int  # by running branches or kept prefixes
    n_prefix_pages: int  # by kept prefixes
    tokens_prompt: int  # of prompts that have been read
    tokens_cached: int  # of them, taken from an earlier request
    tokens_decoded: int
    preemptions: int
    finished: dict[str, int]  # requests by reason: stop, length, cancelled, error


class Engine:
    """Continuous batching over a paged latent cache with prefix reuse."""

    def __init__(self, model: DeepseekModel, n_cache_tokens: int) -> None:
        """n_cache_tokens: room in the cache for all requests and for prefixes kept from finished ones."""
        self._model = model
        self._cache = model.make_cache(n_cache_tokens)
        self._scheduler = Scheduler(self._cache, model.prompt_form)
        self._news: set[Request] = set()  # requests that this step moved
        self._n_submitted = 0
        self._tokens_prompt = self._tokens_cached = self._tokens_decoded = 0
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
            RequestError: the parameters do not fit the vocabulary, or `n` the engine.
            ContextLengthError: the prompt leaves no room for an answer in context or cache.
        """
        room = min(self._model.config.max_position_embeddings, self._cache.n_pages * PAGE_SIZE)
        if len(prompt_ids) >= room:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, but there is room for {room}; shorten it"
            )
        if params.n > MAX_RUNNING:
            raise RequestError(f"n {params.n} is above {MAX_RUNNING}, the texts that are continued together")
        tokens = prompt_ids.tolist()
        request = Request(
            n_prompt=len(tokens),
            params=params,
            eos_token_ids=eos_token_ids,
            max_length=min(len(tokens) + params.max_tokens, room),
            tenant=tenant,
            priority=priority,
        )
        sampler = Sampler(params, tokens, self._model.config.vocab_size, constraint, eos_token_ids)
        request.branches.append(Branch(request, 0, tokens, sampler))
        return request

    def submit(self, request: Request) -> None:
        """Queue a request from `make_request`."""
        self._n_submitted += 1
        request.number = self._n_submitted
        self._scheduler.add(request.branches[0])

    def cancel(self, request: Request, index: int | None = None, reason: str = "cancelled") -> None:
        """End a request, or one branch of it, and free the pages; does nothing if that is finished."""
        for branch in request.branches:
            if not branch.is_finished and index in (None, branch.index):
                self._finish(branch, reason)

    def fail(self, request: Request, error: Exception) -> None:
        """End a request with an error, which its reader will see; nothing of it is kept."""
        request.error = error
        for branch in request.branches:
            if not branch.is_finished:
                self._finish(branch, "error", keep=False)

    def fail_all(self, error: Exception) -> None:
        """End every request with the error."""
        for branch in self._scheduler.running + self._scheduler.waiting:
            self.fail(branch.request, error)

    def step(self) -> bool:
        """Read pieces of prompts and decode one token of each other running text. False: nothing to do."""
        plan = self._scheduler.plan()
        if not plan.reading and not plan.decoding:
            return False
        ended: list[Branch] = []  # their last token is computed: the next one can be chosen
        hidden: list[np.ndarray] = []
        for branch, last in plan.reading:
            rows = self._read(branch, last)
            if branch.n_computed == len(branch.tokens):
                ended.append(branch)
                hidden.append(rows[-1:])
        if plan.decoding:
            hidden.append(self._decode(plan.decoding))
            ended += plan.decoding
        if ended:
            self._choose_tokens(ended, hidden[0] if len(hidden) == 1 else np.concatenate(hidden))
        return True

    def tell(self) -> None:
        """Call `on_news` of the requests that have moved since the last call; one that raises is failed with it."""
        news, self._news = self._news, set()
        for request in news:
            if request.on_news is not None:
                try:
                    request.on_news()
                except Exception as error:
                    request.on_news = None
                    self.fail(request, error)

    @property
    def n_active(self) -> int:
        """Branches that are queued or running."""
        return len(self._scheduler.waiting) + len(self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Branches in the queue."""
        return len(self._scheduler.waiting)

    def queue_position(self, request: Request) -> int:
        """How many branches will be admitted before this request is, and one; 0 if it does not wait."""
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
            preemptions=self._scheduler.n_preemptions,
            finished=dict(self._finished),
        )

    # ---- computing

    def _read(self, branch: Branch, last: int) -> np.ndarray:
        """The branch's tokens up to `last`: f32 (T, D) after the final norm."""
        request, first = branch.request, branch.n_computed
        rows = Rows(
            positions=np.arange(first, last, dtype=np.int32),
            row_sequence=np.zeros(last - first, np.int32),
            block_tables=np.array([branch.pages], np.int32),
            is_prompt=True,
        )
        hidden = self._model.forward(np.array(branch.tokens[first:last], np.int32), rows, self._cache, form=branch.form)
        branch.n_computed = last
        if request.n_read < request.n_prompt:
            request.n_read = min(last, request.n_prompt)
            self._news.add(request)
        if last >= request.n_prompt > first:
            self._scheduler.keep_prompt(branch)
        return hidden

    def _decode(self, branches: list[Branch]) -> np.ndarray:
        """The last token of each branch: f32 (B, D) after the final norm."""
        tables = np.zeros((len(branches), max(len(branch.pages) for branch in branches)), np.int32)
        for row, branch in zip(tables, branches, strict=True):
            row[: len(branch.pages)] = branch.pages
        rows = Rows(
            positions=np.array([branch.n_computed for branch in branches], np.int32),
            row_sequence=np.arange(len(branches), dtype=np.int32),
            block_tables=tables,
            is_prompt=False,
        )
        tokens = np.array([branch.tokens[-1] for branch in branches], np.int32)
        hidden = self._model.forward(tokens, rows, self._cache)
        for branch in branches:
            branch.n_computed += 1
        return hidden

    def _choose_tokens(self, ended: list[Branch], hidden: np.ndarray) -> None:
        """The next token of each branch from its row of f32 (B, D). A prompt that has been read forks into n."""
        logits = self._model.logits(hidden)
        now = time.perf_counter()
        for branch, row in zip(ended, logits, strict=True):
            request = branch.request
            branches = [branch]
            if len(request.branches) < request.params.n:
                branches += self._fork(branch)
            for each in branches:
                self._choose_token(each, row, now)

    def _choose_token(self, branch: Branch, logits: np.ndarray, now: float) -> None:
        """Append the token that follows from logits f32 (vocab_size,); an error ends the branch's request alone."""
        request = branch.request
        if request.is_finished:
            return
        try:
            token = branch.sampler.choose(logits)
            logprob = branch.sampler.logprob(logits, token) if request.params.logprobs is not None else None
        except Exception as error:  # of a constraint, too
            self.fail(request, error)
            return
        branch.tokens.append(token)
        self._tokens_decoded += 1
        if request.first_token is None:
            request.first_token = now
            self._tokens_prompt += request.n_prompt
            self._tokens_cached += request.n_cached
        reason = None
        if token in request.eos_token_ids or branch.sampler.is_complete:
            reason = "stop"
        elif len(branch.tokens) >= request.max_length:
            reason = "length"
        request.events.append(TokenEvent(branch.index, token, logprob, reason, now))
        self._news.add(request)
        if reason is not None:
            self._finish(branch, reason)

    def _fork(self, branch: Branch) -> list[Branch]:
        """The other branches of a request whose prompt has just been read."""
        request = branch.request
        copies = [
            Branch(request, index, list(branch.tokens), branch.sampler.fork(index))
            for index in range(1, request.params.n)
        ]
        request.branches += copies
        self._scheduler.fork(branch, copies)
        return copies

    def _finish(self, branch: Branch, reason: str, *, keep: bool = True) -> None:
        request = branch.request
        branch.is_finished = True
        self._scheduler.remove(branch, keep=keep)
        self._news.add(request)
        if all(each.is_finished for each in request.branches):
            request.finish_reason = reason
            self._finished[reason] += 1
