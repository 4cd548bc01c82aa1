"""The fp32 product, NumPy beside every way of the `linear` kernel, and what alternating BLAS with the kernels costs.

Called by `__main__`. Calls `_kernels`; knows no models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from bench.timing import best_seconds
from deepzig import _kernels
from deepzig._kernels import ACTIVE, implementations
from deepzig._kernels._park import park
from deepzig._kernels.weight import Weight

SIZES = (256, 512, 1024, 2048)
REPEATS = 20
BUDGET_S = 1.0
ALTERNATIONS = 50
ALTERNATED_SIZE = 256  # a product as short as a kernel call
ALTERNATED_ROWS = 256  # of the kernel call


@dataclass(frozen=True)
class Gemm:
    """C = A B^T of square fp32 matrices."""

    size: int
    way: str  # "numpy", or an implementation of linear
    is_picked: bool
    gflops: float


@dataclass(frozen=True)
class Alternation:
    """A product of NumPy's BLAS with all its threads, then a kernel on the pool; seconds a pair."""

    product_s: float  # alone
    kernel_s: float  # alone
    pair_s: float
    parked_pair_s: float  # with `park()` before the product
    region_s: float  # an empty region of the pool; 0 if there is no pool


def table(n_threads: int) -> Iterator[Gemm]:
    """Every size and way. References are left out: theirs is NumPy's product."""
    for size in SIZES:
        a, b = np.random.default_rng(size).standard_normal((2, size, size), np.float32)
        out, weight = np.empty((size, size), np.float32), Weight("f32", (size, size), b)
        with threadpool_limits(n_threads, user_api="blas"):
            yield Gemm(size, "numpy", False, _gflops(size, partial(np.matmul, a, b.T, out=out)))
        for label, linear in implementations("linear"):
            if label != "reference":
                call = partial(linear, a, weight, out, n_threads=n_threads)
                yield Gemm(size, label, label == ACTIVE["linear"], _gflops(size, call))


def alternation(n_threads: int) -> Alternation:
    """What a pair costs beside its halves; threads that spin for one would stall the other (docs/performance.md)."""
    a, b = np.random.default_rng(0).standard_normal((2, ALTERNATED_SIZE, ALTERNATED_SIZE), np.float32)
    product = np.empty_like(a)
    x, weight = np.ones((ALTERNATED_ROWS, 2048), np.float32), np.ones(2048, np.float32)
    out = np.empty_like(x)

    def multiply() -> None:
        np.matmul(a, b, out=product)

    def kernel() -> None:
        _kernels.rms_norm(x, weight, 1e-6, out, n_threads=n_threads)

    with threadpool_limits(n_threads, user_api="blas"):
        return Alternation(
            _seconds(multiply),
            _seconds(kernel),
            _seconds(multiply, kernel),
            _seconds(park, multiply, kernel),
            _region_seconds(n_threads),
        )


def _gflops(size: int, multiply: Callable[[], object]) -> float:
    multiply()
    return 2 * size**3 / best_seconds(multiply, REPEATS, BUDGET_S) / 1e9


def _seconds(*steps: Callable[[], None]) -> float:
    """Seconds of a round of `steps`, the best mean of ALTERNATIONS rounds."""

    def rounds() -> None:
        for _ in range(ALTERNATIONS):
            for step in steps:
                step()

    rounds()
    return best_seconds(rounds, REPEATS, BUDGET_S) / ALTERNATIONS


def _region_seconds(n_threads: int) -> float:
    """Fork and join of the pool."""
    if ACTIVE["rms_norm"].startswith("cython"):
        from deepzig._kernels._pool import run_empty_regions

        return best_seconds(lambda: run_empty_regions(1000, n_threads=n_threads), REPEATS, BUDGET_S) / 1000
    return 0.0
