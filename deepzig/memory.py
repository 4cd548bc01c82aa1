"""How much memory there is for us. Called by `engine`; knows nothing of what it is for."""

import psutil

from deepzig.cgroup import free_memory


def available_memory() -> int:
    """Bytes that this process can take without others being pushed out, within the limits of its control groups."""
    free = psutil.virtual_memory().available
    limit = free_memory()
    return free if limit is None else min(free, limit)
