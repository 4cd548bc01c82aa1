"""How much memory there is for this process. Called by `engine`, `evaluate` and `deepzig info`; knows nothing of its
use."""

import resource

import psutil

from deepzig.cgroup import free_memory


def available_memory() -> int:
    """Bytes that this process can take without pushing out others, within the limits of its control groups."""
    free = psutil.virtual_memory().available
    limit = free_memory()
    return free if limit is None else min(free, limit)


def allocatable_memory() -> int:
    """Bytes that this process can allocate: `available_memory`, and no more than RLIMIT_AS (ulimit -v) leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return available_memory()
    return max(0, min(available_memory(), limit - psutil.Process().memory_info().vms))
