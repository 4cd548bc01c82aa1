"""How fast memory is read in the way decoding reads it: the limit of its speed.

Called by `deepzig info` and `evaluate.speed_report`; calls `_kernels`. Knows nothing of models.
"""

import time

import numpy as np

from deepzig import _kernels
from deepzig._kernels.weight import Weight
from deepzig.memory import allocatable_memory

MATRIX_BYTES = 512 << 20  # more than the caches of a CPU hold
N_COLUMNS = 4096
MIN_PASSES, BUDGET_S = 3, 0.3  # the best counts: other programs slow down single ones


def read_bandwidth(n_threads: int) -> float:
    """Bytes a second, from the fastest product of one row with a bf16 matrix; takes about 0.4 s."""
    nbytes = min(MATRIX_BYTES, allocatable_memory() // 4)
    codes = np.empty((max(1, nbytes // (2 * N_COLUMNS)), N_COLUMNS), np.uint16)
    codes.fill(0)  # allocates the pages: those of np.zeros are all the same one
    weight = Weight("bf16", codes.shape, codes)
    x = np.ones((1, N_COLUMNS), np.float32)
    out = np.empty((1, len(codes)), np.float32)
    seconds: list[float] = []
    while len(seconds) < MIN_PASSES or sum(seconds) < BUDGET_S:
        started = time.perf_counter()
        _kernels.linear(x, weight, out, n_threads=n_threads)
        seconds.append(time.perf_counter() - started)
    return codes.nbytes / min(seconds)
