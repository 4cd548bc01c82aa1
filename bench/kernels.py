"""Every kernel against its bound: bytes moved against the read bandwidth, operations against the peak, of the same run.

Called by `__main__`; calls `kernel_cases` for what to time and the kernels' own `cost` for bytes and operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from time import perf_counter

from bench.kernel_cases import CASES, Case, Operands
from bench.machine import Limits
from deepzig import _kernels
from deepzig._kernels import ACTIVE, DECODING, REGISTRY, implementations

BUDGET_S = 0.5
LEAST_CALLS = 3


@dataclass(frozen=True)
class KernelTime:
    """A case, timed."""

    stem: str
    name: str
    implementation: str
    seconds: float  # best call
    median_seconds: float
    n_bytes: int  # that the call must move at least
    n_flops: int
    is_cold: bool  # operands come from memory
    arithmetic: int  # DECODING, FAST or EXACT

    @property
    def gb_s(self) -> float:
        return self.n_bytes / self.seconds / 1e9

    @property
    def gflops(self) -> float:
        return self.n_flops / self.seconds / 1e9

    def peak(self, limits: Limits) -> float:
        """GFLOPS that the arithmetic of this case could reach: fp32, or bf16 with as many products as make up one."""
        return limits.fp32 if self.arithmetic == DECODING else max(limits.fp32, (limits.bf16 or 0) / self.arithmetic)

    def is_arithmetic(self, limits: Limits) -> bool:
        """Whether the peak bounds it rather than the bandwidth."""
        return self.n_flops / self.peak(limits) > self.n_bytes / limits.read

    def share_of_bound(self, limits: Limits) -> float:
        """Least time by bandwidth and peak, over the time taken. Operands in a cache can exceed 1."""
        memory_s, arithmetic_s = self.n_bytes / limits.read / 1e9, self.n_flops / self.peak(limits) / 1e9
        return max(memory_s, arithmetic_s) / self.seconds


def run(n_threads: int) -> Iterator[KernelTime]:
    """All cases of all kernels, in turn."""
    operands = Operands()
    for stem in CASES:
        for case in CASES[stem](operands):
            yield time_case(case, n_threads)


def time_case(case: Case, n_threads: int) -> KernelTime:
    """Call the variants in turn for BUDGET_S, after one call that does not count."""
    label = case.implementation or ACTIVE[case.stem]
    function = dict(implementations(case.stem))[label] if case.implementation else getattr(_kernels, case.stem)
    function(*case.variants[-1], **case.keywords, n_threads=n_threads)
    seconds: list[float] = []
    began = perf_counter()
    for arguments in cycle(case.variants):
        started = perf_counter()
        function(*arguments, **case.keywords, n_threads=n_threads)
        ended = perf_counter()
        seconds.append(ended - started)
        if len(seconds) >= LEAST_CALLS and ended - began > BUDGET_S:
            break
    n_bytes, n_flops = REGISTRY[case.stem].cost(*case.variants[0])
    arithmetic = int(case.keywords.get("arithmetic", DECODING))
    return KernelTime(
        case.stem, case.name, label, min(seconds), median(seconds), n_bytes, n_flops, case.is_cold, arithmetic
    )
