"""Crew: the machines with the layers after those of this process, as one.

Called by `pipeline`, in the engine's thread; calls the machines, which `ray_cluster` makes. A machine does its tasks in
order, so nobody waits for tasks without a result; a failure shows where a result is waited for. The next call replaces
a lost worker. What the worker had computed is lost with it: the call that met the failure raises at once, calls with
other caches when these are used again.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from deepzig.distributed.worker import MachineFacts, check_same
from deepzig.engine.loading import LoadOptions
from deepzig.errors import ClusterError
from deepzig.model.cache import Rows


class Machine(Protocol):
    """A machine with a `Worker`."""

    name: str  # for messages

    def start(self, method: str, *arguments: object) -> object:
        """Have the worker do something after its earlier tasks; arguments and results are copied. Returns what stands
        for its result: for `result`, and as an argument for a worker."""

    def result(self, started: object) -> Any:
        """Wait for a result. Raises ClusterError if a machine is lost, and what the worker raised."""

    def replace_worker(self) -> None:
        """Start a new worker in place of the last one, if need be on another machine. Raises ClusterError if there is
        none."""

    def dismiss(self) -> None:
        """End the worker."""


_Call = tuple[Machine, object]  # machine, and what stands for the result


class Crew:
    """Machines, each with the layers after those of the one before it."""

    def __init__(
        self, machines: Sequence[Machine], layers: Sequence[range], options: LoadOptions, here: MachineFacts
    ) -> None:
        """Have each machine load its layers. here: this machine's facts; replacement workers must match them.

        Raises as `Worker.load`, and ClusterError.
        """
        self.layers = layers
        self._machines, self._options, self._here = machines, options, here
        self._keys = itertools.count()
        self._caches: dict[int, int] = {}  # key -> tokens
        self._changes: deque[tuple[Any, ...]] = deque()  # caches made or dropped, by any thread
        self._under_way: deque[_Call] = deque()  # nobody has waited for them yet, oldest first
        self._ahead: deque[_Call] = deque()  # calls under way that send rows
        self._is_broken = False
        self._unready: set[int] = set()  # places of machines whose new worker lacks layers or caches
        self._void: set[int] = set()  # caches that have lost rows and have not been used since
        loading = [machine.start("load", part, options) for machine, part in zip(machines, layers, strict=True)]
        self.kernels = [machine.result(started) for machine, started in zip(machines, loading, strict=True)]

    def make_cache(self, n_tokens: int) -> int:
        """A latent cache on each machine. Returns its key. May be called from any thread."""
        key = next(self._keys)
        self._changes.append(("make_cache", key, n_tokens))
        return key

    def drop_cache(self, key: int) -> None:
        """Forget a cache. May be called from any thread."""
        self._changes.append(("drop_cache", key))

    def run(
        self, key: int, rows: Rows, form: str, arithmetic: int, hidden: np.ndarray, is_wanted: bool
    ) -> Callable[[], np.ndarray]:
        """Send rows through all machines: hidden f32 (T, D), as `DeepseekModel.run_layers` takes them.

        Waits only if more calls have rows under way than there are machines.

        Returns:
            What waits for the result, f32 (T, D), and raises as this; not to be called unless the result is wanted.

        Raises:
            ClusterError: a machine is lost, or rows that the cache had on one.
        """
        self._prepare(key)
        *others, last = self._machines
        handed: object = hidden
        for machine in others:
            handed = machine.start("run", key, rows, form, arithmetic, handed, True)
        call = last, last.start("run", key, rows, form, arithmetic, handed, is_wanted)
        self._under_way.append(call)
        self._ahead.append(call)
        if len(self._ahead) > len(self._machines):
            self._wait(key, self._ahead[0])
        return lambda: np.asarray(self._wait(key, call))

    def tell(self, method: str, key: int, *arguments: object) -> None:
        """Have each worker do something with a cache. Raises as `run`."""
        self.tell_each(method, key, [arguments] * len(self._machines))

    def tell_each(self, method: str, key: int, arguments: Sequence[tuple[object, ...]]) -> None:
        """Have each worker do something with a cache, with arguments of its own. Raises as `run`."""
        self._prepare(key)
        for machine, given in zip(self._machines, arguments, strict=True):
            self._under_way.append((machine, machine.start(method, key, *given)))

    def ask(self, method: str, key: int, *arguments: object) -> list[Any]:
        """Have each worker do something with a cache, and return the results of all. Raises as `run`."""
        self._prepare(key)
        calls = [(machine, machine.start(method, key, *arguments)) for machine in self._machines]
        self._under_way.extend(calls)
        return [self._wait(key, call) for call in calls]

    def close(self) -> None:
        """Dismiss all workers; the crew can do nothing after that."""
        for machine in self._machines:
            machine.dismiss()

    def _prepare(self, key: int) -> None:
        if self._is_broken:
            self._mend()
        while self._changes:
            method, changed, *arguments = self._changes.popleft()
            if method == "make_cache":
                self._caches[changed] = arguments[0]
            else:
                del self._caches[changed]
                self._void.discard(changed)
            self._under_way.extend((each, each.start(method, changed, *arguments)) for each in self._machines)
        if key in self._void:
            self._void.remove(key)
            raise ClusterError("a machine failed, and what it had computed of this text is lost; send it again")

    def _wait(self, key: int, call: _Call) -> Any:
        """The result of a call, after those of earlier calls under way: one of them may have failed."""
        try:
            while call in self._under_way:
                machine, started = earlier = self._under_way.popleft()
                if self._ahead and self._ahead[0] is earlier:
                    self._ahead.popleft()
                result = machine.result(started)
                if earlier is call:
                    return result
            return call[0].result(call[1])
        except BaseException:  # this caller gets the error now, other caches when they are used
            self._is_broken = True
            self._under_way.clear()
            self._ahead.clear()
            self._void.update(each for each in self._caches if each != key)
            raise

    def _mend(self) -> None:
        """Replace lost workers, with empty caches. Raises ClusterError if there is no suitable machine."""
        for place, machine in enumerate(self._machines):
            if place not in self._unready and not _is_lost(machine):
                continue
            self._unready.add(place)
            machine.replace_worker()
            check_same(machine.name, self._here, machine.result(machine.start("facts")))
            machine.result(machine.start("load", self.layers[place], self._options))
            for key, n_tokens in self._caches.items():
                machine.result(machine.start("make_cache", key, n_tokens))
            self._unready.remove(place)
        self._is_broken = False


def _is_lost(machine: Machine) -> bool:
    try:
        machine.result(machine.start("check"))
    except ClusterError:
        return True
    return False
