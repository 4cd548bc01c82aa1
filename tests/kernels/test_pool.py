"""The thread pool of the compiled kernels: every task once, threads told apart, fork, many callers, float modes."""

import ctypes
import mmap
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig._kernels import _park, build_report, linear, rms_norm
from deepzig._kernels.weight import Weight

if build_report().problem is not None:
    pytest.skip("nothing is compiled here", allow_module_level=True)

from deepzig._kernels import _pool

BUSY = 20_000  # loops of a task: some 10 microseconds
FLUSHES = 0x1F80 | 0x8040  # MXCSR: results and operands that are subnormal are zero


@pytest.mark.parametrize("n_threads", [-1, 0, 1, 2, 3, 300])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 7, 1000])
def test_every_task_runs_once(n_tasks: int, n_threads: int) -> None:
    calls, threads = _pool.trace_tasks(n_tasks, 0, n_threads=n_threads)
    assert (calls == 1).all()
    assert threads.min(initial=0) >= 0
    assert threads.max(initial=0) < max(1, n_threads)


def test_workers_take_part() -> None:
    """Given milliseconds of work, a second thread joins; on a busy machine it may need several regions."""
    for _ in range(50):
        _, threads = _pool.trace_tasks(200, BUSY, n_threads=2)
        if set(threads) == {0, 1}:
            return
    raise AssertionError("no worker ever ran a task")


def test_one_thread_starts_no_worker() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as process:
        assert process.apply(threads_after_a_region, (1,)) == 1
        assert process.apply(threads_after_a_region, (3,)) == 3


def test_workers_that_a_job_does_not_want_sleep() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as process:
        awake = process.apply(workers_awake_beside_two_threads)
    assert len(awake) == 3
    assert sorted(awake)[1] < 0.1, awake  # seconds; of the three one takes part


def workers_awake_beside_two_threads() -> list[float]:
    """Seconds of CPU that each worker of a job of four threads takes during half a second of jobs of two."""
    already = set(os.listdir("/proc/self/task"))
    _pool.trace_tasks(100, BUSY, n_threads=4)
    workers = sorted(set(os.listdir("/proc/self/task")) - already)
    before = [cpu_seconds(worker) for worker in workers]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        _pool.trace_tasks(2, BUSY, n_threads=2)
    return [cpu_seconds(worker) - started for worker, started in zip(workers, before, strict=True)]


def cpu_seconds(task: str) -> float:
    return int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0]) / 1e9


def threading_count() -> int:
    return len(os.listdir("/proc/self/task"))


def threads_after_a_region(n_threads: int) -> int:
    """How many threads more than before the pool's first use there are, and the caller."""
    already = threading_count()
    _pool.trace_tasks(10, 0, n_threads=n_threads)
    return threading_count() - already + 1


def test_many_python_threads_may_call_at_once() -> None:
    """One has the pool, the others run their tasks themselves."""
    wrong: list[str] = []

    def use_pool() -> None:
        for n_tasks in range(1, 200):
            calls, _ = _pool.trace_tasks(n_tasks, 100, n_threads=2)
            if not (calls == 1).all():
                wrong.append(f"{n_tasks} tasks: {calls}")

    callers = [threading.Thread(target=use_pool) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.fixture
def workers_exist() -> Iterator[None]:
    _pool.trace_tasks(100, BUSY, n_threads=2)
    yield


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_child_of_a_fork_starts_its_own_workers(workers_exist: None) -> None:
    child = os.fork()
    if child == 0:
        correct = False
        try:
            correct = all((_pool.trace_tasks(50, 1000, n_threads=2)[0] == 1).all() for _ in range(20))
        finally:
            os._exit(0 if correct and threading_count() == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (_pool.trace_tasks(50, 1000, n_threads=2)[0] == 1).all()


def test_a_region_after_park_runs_like_any_other(workers_exist: None) -> None:
    for _ in range(20):
        _park.park()
        calls, _ = _pool.trace_tasks(20, 1000, n_threads=2)
        assert (calls == 1).all()


def test_kernels_and_blas_in_turns() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((256, 256), np.float32), np.ones(256, np.float32)
    once = np.empty_like(x)
    rms_norm(x, weight, 1e-6, once, n_threads=1)
    for _ in range(50):
        out = x @ x
        rms_norm(x, weight, 1e-6, out, n_threads=2)
        np.testing.assert_array_equal(out, once)


def set_float_control(value: int) -> int:
    """Sets this thread's MXCSR and returns what it was. Python has no word for it, so these are two instructions."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\xae\x1f\xc3" + b"\x0f\xae\x17\xc3")  # stmxcsr (%rdi); ret; ldmxcsr (%rdi); ret
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    before, after = ctypes.c_uint32(), ctypes.c_uint32(value)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    signature(start)(ctypes.addressof(before))
    signature(start + 4)(ctypes.addressof(after))
    return before.value


def products_in_thread_that_flushes(outs: Any) -> None:
    """Of fp8 codes that are subnormal as bits of a float; the first product with two threads starts a worker."""
    codes = np.random.default_rng(3).integers(1, 8, (300, 1024), np.uint8)
    weight = Weight("fp8", codes.shape, codes, np.ones((3, 8), np.float32), "f32", 128, block_rows=128)
    x = np.random.default_rng(4).standard_normal((3, 1024), np.float32)
    before = set_float_control(FLUSHES)
    found = []
    for n_threads in (2, 1):
        out = np.empty((3, 300), np.float32)
        linear(x, weight, out, n_threads=n_threads)
        found.append(out)
    kept = set_float_control(before)
    exact = x.astype(np.float64) @ codes.T * 2.0**-9
    outs.put((found, exact, kept))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets the mode by x86's instructions")
def test_a_caller_that_flushes_subnormals_changes_nothing() -> None:
    """Other libraries set it for threads that call them; its own the caller keeps."""
    context = multiprocessing.get_context("spawn")
    outs = context.Queue()
    process = context.Process(target=products_in_thread_that_flushes, args=(outs,))
    process.start()
    (with_worker, alone), exact, kept = outs.get(timeout=60)
    process.join()
    np.testing.assert_allclose(alone, exact, rtol=0, atol=1e-6 * abs(exact).max())
    np.testing.assert_array_equal(with_worker, alone)
    assert kept & FLUSHES == FLUSHES
