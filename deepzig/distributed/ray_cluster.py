"""RayCluster: the machines of a Ray cluster, and a worker on each machine in use.

Called by `loading` and `cli`; `crew` calls a `RayMachine` without knowing of Ray. Calls Ray. This process must run on a
machine of the cluster, and computes there itself. Ray starts the workers' processes and carries arguments and results.
Knows nothing of layers.
"""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from deepzig.distributed.worker import Worker
from deepzig.errors import ClusterError, DeepzigError, RequestError

START_HINT = "run `ray start --head` on one machine and `ray start --address=ITS_ADDRESS:6379` on each other"


class RayCluster:
    """The cluster that this machine belongs to."""

    def __init__(self) -> None:
        """Join the cluster, unless this process has. If the program handles SIGTERM, its main thread must join first.

        Raises:
            RequestError: Ray is not installed.
            ClusterError: Ray does not run here, or refuses.
        """
        try:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ModuleNotFoundError as error:
            raise RequestError("several machines need Ray on each: pip install ray") from error
        self.ray: Any = ray
        self._affinity: Any = NodeAffinitySchedulingStrategy
        self._taken: set[str] = set()  # nodes
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # errors of rows that follow a failure
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(f"this machine cannot join a Ray cluster ({_reason(error)}); {START_HINT}") from error
        if threading.current_thread() is threading.main_thread():  # Ray's own handler would end a server at once
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)

    def machines(self, n_machines: int, directory: Path) -> list["RayMachine"]:
        """n_machines besides this one, each with a worker. Raises ClusterError if there are fewer."""
        if n_machines > len(self._others()):
            raise self._too_few()
        return [RayMachine(self, directory) for _ in range(n_machines)]

    def take(self, preferred: str | None) -> dict[str, Any]:
        """Ray's description of a node that no other worker has: the preferred one, if it is there.

        Raises:
            ClusterError: there is none.
        """
        alive = self._others()
        self._taken -= {preferred}
        free = [preferred] if preferred is not None and preferred in alive else sorted(alive.keys() - self._taken)
        if not free:
            raise self._too_few()
        self._taken.add(free[0])
        return alive[free[0]]

    def start_worker(self, node: dict[str, Any], directory: Path) -> Any:
        """Start a `Worker` there. Returns its handle; the worker ends with it."""
        n_cpus = max(1, int(node["Resources"].get("CPU", 1)))
        options = {
            "num_cpus": 0,  # of Ray's accounts: others may have work there too
            "scheduling_strategy": self._affinity(node_id=node["NodeID"], soft=False),
            # else Ray sets it to 1, and `available_threads` heeds it
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(n_cpus)}},
        }
        return self.ray.remote(Worker).options(**options).remote(directory)

    def _too_few(self) -> ClusterError:
        count = len(self._others()) or "none"
        return ClusterError(f"the Ray cluster has too few machines, {count} besides this one; {START_HINT}")

    def _others(self) -> dict[str, dict[str, Any]]:
        """The other machines of the cluster, by the id of their node."""
        here = self.ray.get_runtime_context().get_node_id()
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"] and node["NodeID"] != here}


class RayMachine:
    """A machine of the cluster with its worker: a `crew.Machine`."""

    def __init__(self, cluster: RayCluster, directory: Path) -> None:
        """directory: the checkpoint's folder on that machine."""
        self._cluster, self._directory = cluster, directory
        self._node: str | None = None
        self._worker: Any = None
        self.replace_worker()

    def replace_worker(self) -> None:
        """See `crew.Machine`: on the last worker's machine, if that is there."""
        self.dismiss()
        node = self._cluster.take(self._node)
        self._node, self.name = node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        self._worker = self._cluster.start_worker(node, self._directory)

    def dismiss(self) -> None:
        """See `crew.Machine`."""
        if self._worker is not None and self._cluster.ray.is_initialized():  # else Ray has ended, and its worker
            self._cluster.ray.kill(self._worker)
        self._worker = None

    def start(self, method: str, *arguments: object) -> object:
        """See `crew.Machine`."""
        return getattr(self._worker, method).remote(*arguments)

    def result(self, started: object) -> Any:
        """See `crew.Machine`."""
        exceptions = self._cluster.ray.exceptions
        try:
            return self._cluster.ray.get(started)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RayError):
                raise ClusterError(f"a machine before {self.name} is lost: {_reason(error.cause)}") from error
            if isinstance(error.cause, DeepzigError):
                raise type(error.cause)(f"{self.name}: {error.cause}") from error
            raise
        except exceptions.RayError as error:
            if "in its creation task" in str(error):
                last = str(error).strip().rpartition("\n")[2]
                raise ClusterError(
                    f"{self.name} cannot start a worker ({last}); install the same deepzig there"
                ) from error
            raise ClusterError(f"{self.name} is lost: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first sentence of Ray's message, which can have dozens of lines; they count if a colon announces them."""
    first, _, rest = str(error).strip().partition("\n")
    told = f"{first} {rest}" if first.endswith(":") else first
    return " ".join(told.split()).partition(". ")[0].rstrip(".")
