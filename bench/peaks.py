"""The arithmetic peaks of this machine: loops of peak.c, compiled here and now, and NumPy's fp32 product.

Called by `machine`. Calls the C compiler that built the kernels, once a process; without one NumPy's product stands in
for the fp32 peak and there is no bf16 peak. Knows no kernels; which instructions run is asked of `_kernels._pick`.
"""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bench.timing import best_seconds
from deepzig._kernels._pick import missing_flags

SOURCE = Path(__file__).with_name("peak.c")
LOOPS = 2_000_000  # some milliseconds a call
REPEATS = 5
GEMM_SIZE = 2048
# (function of peak.c, ISA that has its instructions, operations a loop), best first
FP32_LOOPS = (
    ("fma_avx512", "avx512", 16 * 2 * 12),
    ("fma_avx2", "avx2", 8 * 2 * 12),
    ("fma_plain", "plain", 4 * 2 * 12),
)
BF16_LOOPS = (("dot_amx_bf16", "amx", 4 * 16 * 16 * 32 * 2), ("dot_avx512_bf16", "avx512_bf16", 16 * 2 * 2 * 12))


def fp32_peak(n_threads: int) -> float | None:
    """GFLOPS of fused multiply-adds in registers; None without a compiler."""
    return _first_that_runs(FP32_LOOPS, n_threads)


def bf16_peak(n_threads: int) -> float | None:
    """GFLOPS of bf16 products summed in fp32, on tiles or vectors; None without a compiler or such instructions."""
    return _first_that_runs(BF16_LOOPS, n_threads)


def sgemm_peak(n_threads: int) -> float:
    """GFLOPS of NumPy's fp32 product of two square matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, GEMM_SIZE, GEMM_SIZE), np.float32)
    out = np.empty_like(a)
    with threadpool_limits(n_threads, user_api="blas"):
        np.matmul(a, b, out=out)
        return 2 * GEMM_SIZE**3 / best_seconds(lambda: np.matmul(a, b, out=out), REPEATS) / 1e9


def _first_that_runs(loops: tuple[tuple[str, str, int], ...], n_threads: int) -> float | None:
    library = _library()
    if library is None:
        return None
    for name, isa, operations in loops:
        if not missing_flags(isa):
            return _gflops(getattr(library, name), operations, n_threads)
    return None


def _gflops(loop: Callable[[int, float], float], operations: int, n_threads: int) -> float:
    """GFLOPS of `loop` on n_threads cores at once, best of REPEATS; by the threads' own CPU time, so that a machine
    with other work does not seem slower than it is."""

    def rate(_: int) -> float:
        started = time.thread_time()
        loop(LOOPS, 0.5)
        return LOOPS * operations / (time.thread_time() - started) / 1e9

    with ThreadPoolExecutor(n_threads) as pool:
        return max(sum(pool.map(rate, range(n_threads))) for _ in range(REPEATS))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """peak.c, compiled; its functions release the GIL. None if there is no compiler that takes it."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peak.so")
        command = [*compiler, "-O2", "-ffp-contract=fast", "-shared", "-fPIC", "-o", str(path), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        library = ctypes.CDLL(str(path))
    for name, _, _ in (*FP32_LOOPS, *BF16_LOOPS):
        if hasattr(library, name):  # those of other processors are not in it
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_int64, ctypes.c_float], ctypes.c_float
    return library
