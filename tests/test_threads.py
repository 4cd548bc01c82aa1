"""How many threads deepzig takes."""

import os
from pathlib import Path

import pytest

from deepzig import threads
from deepzig.errors import RequestError


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four CPUs with a core each, no quota, no variables."""
    for name in ("DEEPZIG_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.setattr(threads, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    for cpu in range(4):
        write(tmp_path / f"cpus/cpu{cpu}/topology/thread_siblings_list", f"{cpu}\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_one_thread_a_core() -> None:
    assert threads.available_threads() == 4


def test_siblings_share_a_core(tmp_path: Path) -> None:
    for cpu in range(4):
        write(tmp_path / f"cpus/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    assert threads.available_threads() == 2


def test_only_cpus_of_the_affinity_mask_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 3})
    assert threads.available_threads() == 2


def test_without_topology_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_CPUS", tmp_path / "absent")
    assert 1 <= threads.available_threads() <= 4


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (2.0, 2), (1.5, 2), (0.01, 1), (64.0, 4)])
def test_quota_of_control_groups_is_rounded_up(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.available_threads() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2", 2), ("3,1", 3), ("64", 4), ("", 4), ("many", 4), ("0", 4), pytest.param("9" * 5000, 4, id="digits")],
)
def test_omp_num_threads_is_an_upper_limit(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.available_threads() == expected


def test_deepzig_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DEEPZIG_THREADS", "7")
    assert threads.available_threads() == 7


@pytest.mark.parametrize(
    "value", ["0", "-2", "two", "1.5", "²", "1025", "2147483648", pytest.param("9" * 5000, id="digits")]
)
def test_deepzig_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DEEPZIG_THREADS", value)
    with pytest.raises(RequestError, match="DEEPZIG_THREADS="):
        threads.available_threads()
