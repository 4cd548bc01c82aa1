"""What control groups allow this process: CPUs and memory. Called by `threads` and `memory`.

A container, a systemd unit with CPUQuota= or MemoryMax=, and a batch system set such limits. Reads versions 1 and 2;
knows nothing of what the limits are for.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")  # a line "number:controllers:/group" each; version 2 names no controllers


def cpu_quota() -> float | None:
    """CPUs' worth of time that this process may use; None without a limit."""
    quotas = [quota for group in _groups("cpu") if (quota := _cpu_quota(group)) is not None]
    return min(quotas, default=None)


def free_memory() -> int | None:
    """Bytes that this process may still take before its group is full; None without a limit."""
    free = [limit - _used_memory(group) for group in _groups("memory") for limit in _memory_limits(group)]
    return max(0, min(free)) if free else None


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the group that this process is in and of all around it, whose limits hold too.

    A container may see its own group as the outermost while /proc names the path outside; then only that one exists.
    """
    for line in (_read(_MEMBERSHIP) or "").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = _MOUNT / controller if controllers else _MOUNT
        group = PurePosixPath(name.lstrip("/"))
        yield from (mount / folder for folder in (group, *group.parents) if (mount / folder).is_dir())


def _cpu_quota(group: Path) -> float | None:
    fields = (_read(group / "cpu.max") or "").split()
    fields = fields or [_read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    if fields[0] in ("", "max", "-1"):
        return None
    return int(fields[0]) / int(fields[1])


def _memory_limits(group: Path) -> list[int]:
    """A group's limits: above memory.high it is slowed down, at memory.max it is stopped."""
    texts = [_read(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    return [int(text) for text in texts if text not in (None, "max")]


def _used_memory(group: Path) -> int:
    """Memory in use, without the cached pages of files, such as mapped weights: these are given back on demand."""
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes") or "0"
    stat = dict(line.split() for line in (_read(group / "memory.stat") or "").splitlines())
    prefix = "total_" if "total_active_file" in stat else ""  # version 1 counts groups within only in these
    return int(used) - sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))


def _read(path: Path) -> str | None:
    """The content of a file; None if it is missing: another version or another controller."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
