"""Limits of control groups, on trees of files as both versions lay them; what they leave of memory."""

import resource
from pathlib import Path

import psutil
import pytest

from deepzig import cgroup, memory

UNLIMITED_1 = "9223372036854771712\n"  # what version 1 says where there is no limit


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a test lays the files of /sys/fs/cgroup; a process in no group."""
    monkeypatch.setattr(cgroup, "_MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "_MEMBERSHIP", tmp_path / "membership")
    return tmp_path / "cgroup"


def lay(groups: Path, membership: str, files: dict[str, str]) -> None:
    (groups.parent / "membership").write_text(membership)
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def stat(active: int, inactive: int, prefix: str = "") -> str:
    return f"anon 7\n{prefix}active_file {active}\n{prefix}inactive_file {inactive}\n"


def test_no_control_groups(groups: Path) -> None:
    assert cgroup.cpu_quota() is None and cgroup.free_memory() is None


@pytest.mark.parametrize(
    ("own", "around", "expected"),
    [
        ("max 100000", "max 100000", None),
        ("200000 100000", "max 100000", 2.0),
        ("max 100000", "150000 100000", 1.5),
        ("300000 100000", "50000 100000", 0.5),
    ],
)
def test_cpu_quota_of_version_2(groups: Path, own: str, around: str, expected: float | None) -> None:
    lay(groups, "0::/a.slice/b\n", {"a.slice/b/cpu.max": own, "a.slice/cpu.max": around})
    assert cgroup.cpu_quota() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", None), ("300000\n", 3.0)])
def test_cpu_quota_of_version_1(groups: Path, quota: str, expected: float | None) -> None:
    files = {"cpu/job/cpu.cfs_quota_us": quota, "cpu/job/cpu.cfs_period_us": "100000\n"}
    lay(groups, "3:cpu,cpuacct:/job\n2:memory:/\n0::/\n", files)
    assert cgroup.cpu_quota() == expected


def test_memory_of_version_2_is_the_least_of_all_limits(groups: Path) -> None:
    own = {"s/unit/memory.max": "1000\n", "s/unit/memory.high": "900\n", "s/unit/memory.current": "500\n"}
    around = {"s/memory.max": "5000\n", "s/memory.high": "max\n", "s/memory.current": "4700\n"}
    lay(groups, "0::/s/unit\n", own | around)
    assert cgroup.free_memory() == 300
    lay(groups, "0::/s/unit\n", {"s/memory.max": "max\n"})
    assert cgroup.free_memory() == 400


def test_cached_files_count_as_free(groups: Path) -> None:
    files = {"memory.max": "1000\n", "memory.current": "990\n", "memory.stat": stat(500, 200)}
    lay(groups, "0::/\n", files)
    assert cgroup.free_memory() == 710


def test_group_over_its_limit_has_nothing_free(groups: Path) -> None:
    lay(groups, "0::/\n", {"memory.max": "1000\n", "memory.current": "1200\n", "memory.stat": stat(0, 0)})
    assert cgroup.free_memory() == 0


def test_memory_of_version_1(groups: Path) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": "1000\n",
        "memory/job/memory.usage_in_bytes": "800\n",
        "memory/job/memory.stat": stat(1, 1) + stat(100, 50, "total_"),
        "memory/memory.limit_in_bytes": UNLIMITED_1,
        "memory/memory.usage_in_bytes": "123456\n",
    }
    lay(groups, "4:memory:/job\n", files)
    assert cgroup.free_memory() == 350


def test_container_that_sees_only_its_own_group(groups: Path) -> None:
    """/proc names the group as it is outside; the mount shows the container's own as the outermost."""
    lay(groups, "0::/docker/0123\n", {"memory.max": "1000\n", "memory.current": "100\n", "cpu.max": "100000 100000\n"})
    assert cgroup.free_memory() == 900 and cgroup.cpu_quota() == 1.0


@pytest.mark.parametrize(("limit", "is_tighter"), [("4096\n", True), ("max\n", False), (str(1 << 60), False)])
def test_available_memory_is_within_both_limits(groups: Path, limit: str, is_tighter: bool) -> None:
    lay(groups, "0::/\n", {"memory.max": limit, "memory.current": "0\n"})
    assert (memory.available_memory() == 4096) == is_tighter
    assert memory.available_memory() > 0


def test_a_limit_of_addresses_counts_for_what_is_allocated(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + (64 << 20), resource.RLIM_INFINITY))
    assert 0 < memory.allocatable_memory() <= 128 << 20 < memory.available_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert memory.allocatable_memory() == 0


def test_without_a_limit_of_addresses_what_is_available_can_be_allocated(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lay(groups, "0::/\n", {"memory.max": "4096\n", "memory.current": "0\n"})
    assert memory.allocatable_memory() == 4096
