"""Run: what the engine computes for one request, seen from the event loop; and RunRegistry, all that are going on.

Made by the endpoints; calls `LLM.submit`. Chunks wait in the engine's queue until they are taken, so a client that does
not read holds no memory but its own tokens. Knows nothing of HTTP.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from deepzig.engine.generation import WAKE_INTERVAL_S, Generation
from deepzig.engine.llm import LLM
from deepzig.engine.results import GenerationResult, Progress, StreamChunk
from deepzig.engine.sampling import SamplingParams, TokenConstraint
from deepzig.server.answer import Answer
from deepzig.server.failures import ApiError, as_api_error, blaming
from deepzig.server.metrics import Metrics

MAX_BACKLOG = 4096  # events of each sequence that may wait for a client that does not read
MAX_PREPARING = 4  # requests whose `Ask.preparation` is done at a time
MAX_COMPILING = 2  # requests whose constraint is compiled at a time

IsOver = Callable[[], bool]


@dataclass(frozen=True)
class Ask:
    """What a request wants of the engine: one answer set for each prompt."""

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    field: str = "messages"  # of the request, where the prompts come from
    constraint: TokenConstraint | None = None
    compile_constraint: Callable[[], TokenConstraint] | None = None  # in its place; may take seconds
    tenant: str = ""
    priority: int = 0
    preparation: Callable[[IsOver], None] | None = None  # before chunks are given out; ends early once told it is over


class Waker:
    """Carries notifications from the engine's thread to the event loop: one wake-up for all runs.

    The first one wakes the loop at once. While more come the loop looks every WAKE_INTERVAL_S, because each wake-up
    takes a core from the kernels.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken: deque[Run] = deque()
        self._is_scheduled = False

    def notify(self, run: "Run") -> None:
        """Called from any thread."""
        self._woken.append(run)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._woken:
            while self._woken:
                self._woken.popleft().on_update()
            self._loop.call_later(WAKE_INTERVAL_S, self._wake)
            return
        self._is_scheduled = False
        if self._woken:  # came between the two lines above, and saw that a wake-up was scheduled
            self._is_scheduled = True
            self._loop.call_soon(self._wake)


class Run:
    """The generations of one request. Read by one task, with `next`; ended by `close`, whatever happens."""

    def __init__(self, registry: "RunRegistry", waker: Waker) -> None:
        self.started = time.perf_counter()
        self.results: list[GenerationResult] = []
        self.is_unwanted = False  # the client left before it was submitted
        self._registry = registry
        self._waker = waker
        self._generations: list[Generation] = []
        self._updated = asyncio.Event()
        self._n_unread = 0
        self._max_unread = 0  # from `submit`
        self._preparing: asyncio.Task[None] | None = None
        self._is_ready = True  # chunks may be given out
        self._failure: ApiError | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._n_tokens = 0
        self._is_closed = False

    def submit(self, llm: LLM, ask: Ask) -> None:
        """Hand the request to the engine; may block: not for the event loop. Raises as `LLM.submit`, or ApiError."""
        if self.is_unwanted:
            return
        self._max_unread = MAX_BACKLOG * len(ask.prompts) * ask.params.n
        whole = ask.compile_constraint() if ask.compile_constraint is not None else ask.constraint
        for index, prompt in enumerate(ask.prompts):
            last = index == len(ask.prompts) - 1
            constraint = whole if whole is None or last else whole.copy()
            with blaming(ask.field):
                generation = llm.submit(
                    prompt,
                    ask.params,
                    tenant=ask.tenant,
                    priority=ask.priority,
                    constraint=constraint,
                    on_update=lambda: self._waker.notify(self),
                )
            self._generations.append(generation)

    def prepare(self, workers: Executor, preparation: Callable[[IsOver], None]) -> None:
        """Have a worker do what must be done first. It takes long, so the run is watched meanwhile."""
        self._is_ready = False
        self._preparing = asyncio.get_running_loop().create_task(self._prepare(workers, preparation))

    async def _prepare(self, workers: Executor, preparation: Callable[[IsOver], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(workers, preparation, lambda: self._is_over)
        except Exception as error:
            self.abort(as_api_error(error))
            return
        self._is_ready = True
        self._updated.set()

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._failure is not None

    async def is_ready(self, timeout: float) -> bool:
        """Whether chunks may be given out; waits for it at most `timeout` seconds. Raises ApiError: it was aborted."""
        if self._preparing is not None:
            await asyncio.wait((self._preparing,), timeout=timeout)
        if self._failure is not None:
            raise self._failure
        return self._is_ready

    async def next(self, timeout: float) -> list[tuple[int, StreamChunk]]:
        """(index of the prompt, chunk) of all that has come; empty after `timeout` seconds without any.

        Raises:
            DeepzigError: what the engine met. ApiError: the run was aborted.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if (chunks := self._taken()) or self.is_finished:  # without chunks if nothing was to be answered
                        return chunks
                    await self._updated.wait()
                    self._updated.clear()
        except TimeoutError:
            return []

    def _taken(self) -> list[tuple[int, StreamChunk]]:
        self._n_unread = 0
        if self._failure is not None:
            raise self._failure
        if not self._is_ready:
            return []
        chunks = [(index, chunk) for index, each in enumerate(self._generations) for chunk in each.poll()]
        if chunks:
            self._count(chunks)
        return chunks

    def _count(self, chunks: Sequence[tuple[int, StreamChunk]]) -> None:
        now = time.perf_counter()
        metrics = self._registry.metrics
        if self._first_token is None:
            self._first_token = now
            metrics.first_token_seconds.observe(now - self.started)
        else:
            metrics.token_gap_seconds.observe((now - self._last_token) / len(chunks))
        self._last_token = now
        self._n_tokens += len(chunks)
        self.results += [chunk.result for _, chunk in chunks if chunk.result is not None]

    @property
    def is_finished(self) -> bool:
        """All generations have given their results."""
        return self._is_ready and len(self.results) == len(self._generations)

    @property
    def progress(self) -> Progress:
        """Progress of all prompts together; the queue position is that of the last."""
        each = [generation.progress for generation in self._generations]
        return Progress(
            queue_position=max(p.queue_position for p in each),
            prompt_tokens=sum(p.prompt_tokens for p in each),
            prompt_tokens_done=sum(p.prompt_tokens_done for p in each),
            cached_tokens=sum(p.cached_tokens for p in each),
        )

    @property
    def has_begun(self) -> bool:
        """A token has come."""
        return self._first_token is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def on_update(self) -> None:
        """Something can be taken. Called in the event loop."""
        self._n_unread += self._is_ready
        if self._n_unread > self._max_unread:
            self.abort(ApiError(503, "the client did not read its stream", code="slow_reader"))
        self._updated.set()

    def abort(self, error: ApiError) -> None:
        """End the run; whoever reads it gets `error`."""
        if self._failure is None and not self.is_finished:
            self._failure = error
            self._cancel()
            self._updated.set()

    def close(self, reason: str) -> None:
        """Cancel what still runs, and count how the run ended: stop, length, tool_calls, cancelled or error."""
        if self._is_closed:
            return
        self._is_closed = True
        self._cancel()
        self._registry.remove(self)
        self._registry.metrics.finished(reason, time.perf_counter() - self.started, self.results, self._n_tokens)

    def end_unwanted(self, submitting: asyncio.Future[None]) -> None:
        """Close what was submitted after the client had left; nobody waits for an error of that."""
        if not submitting.cancelled():
            submitting.exception()  # asyncio would report it as forgotten
        self.close("cancelled")

    def _cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()


class RunRegistry:
    """All runs, so that they can be counted and ended."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._runs: set[Run] = set()
        self._waker: Waker | None = None
        self._refusal: ApiError | None = None  # nothing begins any more
        # Not asyncio's, which every request needs.
        self._workers = ThreadPoolExecutor(MAX_PREPARING, "prepare")
        self._compilers = ThreadPoolExecutor(MAX_COMPILING, "compile")

    async def start(self, llm: LLM, ask: Ask) -> Run:
        """Submit a request. Raises as `LLM.submit`, and ApiError after `close`; then nothing is left behind."""
        if self._refusal is not None:
            raise self._refusal
        if self._waker is None:
            self._waker = Waker(asyncio.get_running_loop())
        run = Run(self, self._waker)
        self._runs.add(run)
        workers = None if ask.compile_constraint is None else self._compilers
        submitting = asyncio.get_running_loop().run_in_executor(workers, run.submit, llm, ask)
        try:
            await asyncio.shield(submitting)
        except BaseException as error:
            if not submitting.done():  # the client left meanwhile: what is submitted yet must not stay
                run.is_unwanted = True
                submitting.add_done_callback(run.end_unwanted)
            else:
                run.close("cancelled" if isinstance(error, asyncio.CancelledError) else "error")
            raise
        if ask.preparation is not None:
            run.prepare(self._workers, ask.preparation)
        return run

    @contextlib.asynccontextmanager
    async def running(self, llm: LLM, ask: Ask, answer: Answer, gone: type[Exception]) -> AsyncIterator[Run]:
        """A run from start to end, closed with its reason; `gone`: what is raised when the client has left.

        Raises as `start`.
        """
        run = await self.start(llm, ask)
        reason = "error"
        try:
            yield run
            reason = answer.end_reason
        except (gone, asyncio.CancelledError):
            reason = "cancelled"
            raise
        finally:
            run.close(reason)

    def remove(self, run: Run) -> None:
        """Forget a run that has ended."""
        self._runs.discard(run)

    def close(self, error: ApiError) -> None:
        """End every run; what is still being prepared gets the error when it would begin."""
        self._refusal = error
        for run in tuple(self._runs):
            run.abort(error)

    def __len__(self) -> int:
        return len(self._runs)
