"""How many threads deepzig uses.

Called by `engine`, `cli` and bench; knows nothing of kernels. The kernels' own pool is `_kernels/_pool.pyx`.
"""

import math
import os
from pathlib import Path

from deepzig.cgroup import cpu_quota
from deepzig.errors import RequestError

MAX_THREADS = 1024  # that a user may ask for: a slip of the finger must not ask the system for millions
_CPUS = Path("/sys/devices/system/cpu")


def available_threads() -> int:
    """DEEPZIG_THREADS if set, else the physical cores that this process may use, and no more than OMP_NUM_THREADS.

    Cores are counted within the affinity mask and the CPU quota of control groups: a thread without a core of its own
    makes the others wait for it. Raises RequestError if DEEPZIG_THREADS is no number from 1 to MAX_THREADS.
    """
    wanted = os.environ.get("DEEPZIG_THREADS", "")
    if wanted:
        n_threads = _number(wanted)
        if not 1 <= n_threads <= MAX_THREADS:
            raise RequestError(
                f"DEEPZIG_THREADS={wanted[:40]!r} is no number of threads: use 1 to {MAX_THREADS}, or unset it"
            )
        return n_threads
    limits = [_physical_cores(os.sched_getaffinity(0)), _cgroup_cores(), _openmp_threads()]
    return max(1, min(limit for limit in limits if limit is not None))


def _physical_cores(cpus: set[int]) -> int:
    """Physical cores of the logical CPUs: siblings that share a core count once."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:  # a container may hide the topology
            return _cores_of_system(len(cpus))
    return len(cores)


def _cores_of_system(n_cpus: int) -> int:
    import psutil

    return min(n_cpus, psutil.cpu_count(logical=False) or n_cpus)


def _cgroup_cores() -> int | None:
    """The CPU quota of the control groups in whole cores, rounded up; None without one."""
    quota = cpu_quota()
    return None if quota is None else math.ceil(quota)


def _openmp_threads() -> int | None:
    """OMP_NUM_THREADS, whose form "4,2" sets nested levels; what is no number is ignored, as OpenMP does."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return _number(first) or None


def _number(text: str) -> int:
    """The number; 0 for what is no number, or has more digits than any number of threads."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
