"""Threads for Numba kernels: rows are split into ranges, each run by a njit function that releases the GIL.

Called by the `*_numba` modules. Not `prange`: its thread layers either abort when two Python threads call at once
(workqueue) or spin against NumPy's BLAS (omp).
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# LLVM must keep infinities and NaN: never `fastmath=True`. With "reassoc" it reorders sums, in another way for each
# layout of an array; a row's sum that must not depend on its neighbours goes into LANES partial sums instead.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
FASTMATH_IN_ORDER = FASTMATH - {"reassoc"}
LANES = 16


@functools.cache
def _executor(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="deepzig-numba")


os.register_at_fork(after_in_child=_executor.cache_clear)  # the child has none of the threads


def run_rows(function: Callable[..., None], n_rows: int, n_threads: int, *arguments: Any) -> None:
    """Calls `function(first_row, stop_row, *arguments)` over [0, n_rows) on up to n_threads threads."""
    n_parts = min(n_threads, n_rows)
    if n_parts <= 1:
        function(0, n_rows, *arguments)
        return
    bounds = [n_rows * part // n_parts for part in range(n_parts + 1)]
    others: list[Future[None]] = []
    for part in range(1, n_parts):
        try:
            others.append(_executor(n_threads - 1).submit(function, bounds[part], bounds[part + 1], *arguments))
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            # At the end of the main thread executors close before other threads, which may still compute, are joined.
            function(bounds[part], bounds[part + 1], *arguments)
    function(bounds[0], bounds[1], *arguments)
    for other in others:
        other.result()
