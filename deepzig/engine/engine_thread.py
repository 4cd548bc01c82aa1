"""EngineThread: the one thread that computes. Takes requests from any thread; steps the engine while there is work.

Called by `llm` and `generation`; calls `engine`. The thread is started by the first call and sleeps while there is
nothing to do. What callers want done waits in a queue and is done between two steps. A fork of the process lacks the
thread, and its copy of requests and cache may be in the middle of a step: using the model there is an error.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from deepzig.engine.engine import Engine
from deepzig.engine.request import Request
from deepzig.engine.results import EngineStats
from deepzig.errors import QueueFullError, RequestError, ResourceError

MAX_WAITING = 1024  # requests that wait
CLOSED = "this model is closed; load it again"

T = TypeVar("T")


class EngineThread:
    """An engine and its thread. Every method may be called from any thread."""

    def __init__(self, engine: Engine, *, may_fork: bool = True) -> None:
        """may_fork: until the thread is started, a fork of this process may use the engine too."""
        self._engine: Engine | None = engine  # None: closed
        self.last_stats = engine.stats()  # as of the end of the last step, for callers that must not wait
        self._work: deque[Callable[[], None]] = deque()
        self._n_arriving = 0  # submissions in _work
        # Guards _work, _n_arriving, _is_closed and _thread. `notify_all`, although one thread waits: a `notify` that
        # Ctrl-C has interrupted leaves a waiter behind that the next `notify` would wake in its place.
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._owner_pid = None if may_fork else os.getpid()  # process that started _thread

    @property
    def engine(self) -> Engine:
        """Raises RequestError once it is closed."""
        if self._engine is None:
            raise RequestError(CLOSED)
        return self._engine

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork: the thread runs in its parent, or only its parent may use the engine."""
        return self._owner_pid not in (None, os.getpid())

    def check_process(self) -> None:
        """Raise RequestError in a fork. Check before taking _changed: a thread that the fork lacks may hold it."""
        if self.is_forked:
            raise RequestError("this process was forked from one that uses the model; load it again in this one")

    def submit(self, request: Request) -> None:
        """Queue a request from `Engine.make_request`.

        Raises:
            QueueFullError: MAX_WAITING requests wait.
            RequestError: the model is closed, or another process's.
            ResourceError: the system gives no thread.
        """
        self.check_process()
        with self._changed:
            n_waiting = self.engine.n_waiting + self._n_arriving
            if n_waiting >= MAX_WAITING:
                raise QueueFullError(f"{n_waiting} requests are waiting already; try again later")
            self._post(lambda: self._arrive(request))
            self._n_arriving += 1

    def cancel(self, request: Request, index: int | None = None, reason: str = "cancelled") -> None:
        """End a request, or one branch of it, before the next step; its pages are free then."""
        if self.is_forked:
            return
        with self._changed:
            if not self._is_closed and not request.is_finished:
                self._post(lambda: self.engine.cancel(request, index, reason))

    def call(self, function: Callable[[], T]) -> T:
        """Have the engine's thread run `function` between two steps, and return or raise what it does. A listener's
        call, in that thread already, runs at once."""
        if threading.current_thread() is self._thread:
            return function()
        self.check_process()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._post(run)
        return future.result()

    def stats(self) -> EngineStats:
        """Counts of the engine; waits for the end of a step that is going on."""
        return self.last_stats if self._thread is None else self.call(self.engine.stats)

    def queue_position(self, request: Request) -> int:
        """The place that `Engine.queue_position` gives; 0 once the thread is closed."""
        engine = self._engine  # once: another thread may close it
        return 0 if engine is None else engine.queue_position(request)

    def close(self) -> None:
        """End the thread and let go of the engine; unfinished requests fail. Returns when it has ended. Does nothing in
        a fork."""
        if self.is_forked:
            return
        with self._changed:
            thread, self._thread = self._thread, None
            self._is_closed = True
            self._changed.notify_all()
        if thread is None:
            self._engine = None
        elif thread is not threading.current_thread():
            thread.join()

    def _post(self, work: Callable[[], None]) -> None:
        """Have the thread do some work; the caller holds _changed."""
        if self._is_closed:
            raise RequestError(CLOSED)
        if self._thread is None:
            self._start()
        self._work.append(work)
        self._changed.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="deepzig-engine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ResourceError(f"the model's thread cannot be started ({error}); check the process limit") from error
        self._thread, self._owner_pid = thread, os.getpid()

    def _arrive(self, request: Request) -> None:
        with self._changed:
            self._n_arriving -= 1
        self.engine.submit(request)

    def _run(self) -> None:
        while self._wait_for_work():
            while self._work:
                self._work.popleft()()
            try:
                self.engine.step()
            except BaseException as error:  # a defect, or memory or a machine is gone: those that wait must hear of it
                self.engine.fail_all(error)
                self.engine.forget_prefixes()
            self.last_stats = self.engine.stats()  # before readers are notified: who has an answer finds it counted
            self.engine.notify()
        while self._work:
            self._work.popleft()()
        self.engine.fail_all(RequestError("the model was closed before the answer was complete"))
        self.last_stats = self.engine.stats()
        self.engine.notify()
        self._engine = None

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do. False: closed."""
        if not self._work and not self.engine.n_active and not self._is_closed:
            self.last_stats = self.engine.stats()  # notifying a reader may have failed its request
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._is_closed)
        return not self._is_closed
