"""Threads of this process as machines: what a Ray cluster does, for tests without one."""

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deepzig
from deepzig.distributed.crew import Machine
from deepzig.distributed.loading import network_over
from deepzig.distributed.worker import Worker
from deepzig.engine.loading import LoadOptions, build_llm
from deepzig.errors import ClusterError


class ThreadMachine:
    """A `crew.Machine` whose worker is in a thread. It can be held, and lost."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self._directory = name, directory
        self.n_workers = 0
        self.asked: list[str] = []  # methods, in the order in which they were started
        self.done: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.lost_at: str | None = None  # the method before which the worker dies
        self.delay: Callable[[], float] = lambda: 0.0  # seconds before each call
        self.replace_worker()

    def dismiss(self) -> None:
        self.has_worker = False
        self._thread.shutdown(wait=False)

    def replace_worker(self) -> None:
        self.n_workers += 1
        self.has_worker = True
        self._is_lost, self.lost_at = False, None
        self._worker = Worker(self._directory)
        self._thread = ThreadPoolExecutor(1)

    def start(self, method: str, *arguments: object) -> object:
        self.asked.append(method)
        return self._thread.submit(self._do, method, [_copied(each) for each in arguments])

    def result(self, started: object) -> Any:
        assert isinstance(started, Future)
        return started.result(60)

    def lose(self) -> None:
        """The machine is gone, with all that its worker had."""
        self._is_lost = True

    def _do(self, method: str, arguments: list[object]) -> Any:
        assert self.may_go_on.wait(60)
        time.sleep(self.delay())
        given = [each.result() if isinstance(each, Future) else each for each in arguments]
        if method == self.lost_at:
            self.lose()
        if self._is_lost:
            raise ClusterError(f"{self.name} is lost")
        result = _copied(getattr(self._worker, method)(*given))
        self.done.append(method)
        return result


def _copied(value: object) -> object:
    """What a process gets of it."""
    return value if isinstance(value, Future) else pickle.loads(pickle.dumps(value))


def load_over_threads(model: str | Path, n_machines: int, **options: Any) -> tuple[deepzig.LLM, list[ThreadMachine]]:
    """A model on this thread's machine and n_machines - 1 others."""
    machines: list[ThreadMachine] = []

    def make_network(directory: Path, *rest: Any) -> Any:
        machines.extend(ThreadMachine(f"machine {number}", directory) for number in range(2, n_machines + 1))
        crew: list[Machine] = list(machines)
        return network_over(crew, directory, *rest)

    return build_llm(model, LoadOptions(**options), make_network), machines


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for another thread; fails after a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
