"""What this machine is and what it can do at most: the bounds that every figure of the bench stands beside.

`limits` is called before and after each section, and within it by `decode`, which runs as a process of its own. Calls
`peaks` for arithmetic, a Numba loop for memory, and `deepzig.evaluate.machine` for names.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

import deepzig
from bench.peaks import bf16_peak, fp32_peak, sgemm_peak
from bench.timing import best_seconds
from deepzig.evaluate.machine import describe_machine, describe_software, now

BUFFER_BYTES = 1 << 30  # far beyond any cache that a virtual machine may be granted
REPEATS = 5


@dataclass(frozen=True)
class Limits:
    """What the machine did at most at one moment; all threads unless stated."""

    read_one_thread: float  # GB/s (1e9 bytes) from DRAM
    read: float
    sgemm: float  # GFLOPS of NumPy's fp32 product
    fp32: float  # GFLOPS of fused multiply-adds in registers; without a C compiler the same as sgemm
    bf16: float | None  # GFLOPS of bf16 products summed in fp32; None if the CPU has no such instructions
    load_average: float

    def __str__(self) -> str:
        bf16 = f", bf16 {self.bf16:.0f}" if self.bf16 else ""
        return (
            f"read {self.read:.1f} GB/s (one thread {self.read_one_thread:.1f}), sgemm {self.sgemm:.0f}, "
            f"fp32 {self.fp32:.0f}{bf16} GFLOPS, load average {self.load_average:.1f}"
        )


def limits(n_threads: int) -> Limits:
    """Measure them; takes one to two seconds."""
    load = os.getloadavg()[0]
    read_one_thread, read = _read_rates(n_threads)
    sgemm = sgemm_peak(n_threads)
    return Limits(read_one_thread, read, sgemm, fp32_peak(n_threads) or sgemm, bf16_peak(n_threads), round(load, 2))


def better(before: Limits, after: Limits) -> Limits:
    """The higher of each: what figures between the two are compared with."""
    return Limits(
        max(before.read_one_thread, after.read_one_thread),
        max(before.read, after.read),
        max(before.sgemm, after.sgemm),
        max(before.fp32, after.fp32),
        max(before.bf16, after.bf16) if before.bf16 and after.bf16 else None,
        max(before.load_average, after.load_average),
    )


@numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _sum(values: np.ndarray) -> np.float32:
    """Sum of f32 (n,): of the loops tried (also NumPy's sum, max and xor) the one that reads fastest."""
    total = np.float32(0)
    for i in range(values.size):
        total += values[i]
    return total


def _read_rates(n_threads: int) -> tuple[float, float]:
    """GB/s of summing a buffer of BUFFER_BYTES with 1 and with n_threads threads."""
    buffer = np.ones(BUFFER_BYTES // 4, np.float32)
    _sum(buffer[:64])

    def rate(count: int) -> float:
        parts = np.array_split(buffer, count)
        with ThreadPoolExecutor(count) as pool:
            return buffer.nbytes / best_seconds(lambda: list(pool.map(_sum, parts)), REPEATS) / 1e9

    return rate(1), rate(n_threads)


def describe(n_threads: int) -> dict[str, Any]:
    """CPU, memory, threads, kernels picked, versions and date: what every result is labelled with."""
    return {
        "date": now(),
        **describe_machine(),
        "threads": n_threads,
        **describe_software(),
        "deepzig": deepzig.__version__,
    }


def anonymous_bytes() -> int:
    """Memory of this process that no file backs (RssAnon); 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
