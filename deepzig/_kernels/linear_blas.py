"""linear with NumPy's BLAS; contract in `linear.py`. Weights become float panels by the `dequantize` kernel.

A row of the result depends on how many rows are multiplied with it: BLAS picks its order of summation by the shape. It
does not depend on n_threads.

BLAS runs on one thread here, and threads of our own share out the panels. Its own threads would wait for each other by
spinning, long after a product is done, on the cores that the next kernel needs.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from deepzig import _kernels
from deepzig._kernels._array_checks import need, need_output, threads_for
from deepzig._kernels._numba_threads import run_rows
from deepzig._kernels._park import park
from deepzig._kernels.weight import DECODING, Weight

PANEL_BYTES = 1 << 20  # floats of a panel

_limiting = threading.Lock()


@functools.cache
def _libraries() -> Any:
    """The libraries of this process with threads of their own; finding them takes milliseconds."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within this context BLAS uses one thread, for the whole process; afterwards as many as before.

    Only the first of several Python threads that are inside sets the number and sets it back: in turns they would
    take each other's 1 for what was there before. The others may outlast it, and then wait for BLAS threads.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()


class _Panel(threading.local):
    """Floats that a thread keeps between calls: fresh memory would cost as much as the decoding."""

    floats = np.empty(0, np.float32)

    def of_shape(self, rows: int, columns: int) -> np.ndarray:
        """f32 (rows, columns) of any content."""
        if self.floats.size < rows * columns:
            self.floats = np.empty(rows * columns, np.float32)
        return self.floats[: rows * columns].reshape(rows, columns)


_panel = _Panel()


def _multiply_panels(first: int, stop: int, x: np.ndarray, weight: Weight, panel_rows: int, out: np.ndarray) -> None:
    """Panels [first, stop), each of panel_rows rows of the weight."""
    rows = weight.shape[0]
    for row in range(first * panel_rows, min(stop * panel_rows, rows), panel_rows):
        panel_stop = min(row + panel_rows, rows)
        np.matmul(x, _panel_of(weight, row, panel_stop).T, out=out[:, row:panel_stop])


def _panel_rows(weight: Weight) -> int:
    return max(16, PANEL_BYTES // (4 * max(1, weight.shape[1])))


def multiply_columns(weight: Weight, columns: np.ndarray, out: np.ndarray) -> None:
    """out f32 (N, S) = weight (N, K) times columns f32 (K, S), on this thread alone; within `one_blas_thread`."""
    panel_rows = _panel_rows(weight)
    for row in range(0, weight.shape[0], panel_rows):
        panel_stop = min(row + panel_rows, weight.shape[0])
        np.matmul(_panel_of(weight, row, panel_stop), columns, out=out[row:panel_stop])


def _panel_of(weight: Weight, first: int, stop: int) -> np.ndarray:
    """Rows [first, stop) as floats; the thread's next panel takes their place."""
    if weight.format == "f32":
        return weight.codes[first:stop, : weight.shape[1]]
    panel = _panel.of_shape(stop - first, weight.shape[1])
    _kernels.dequantize(weight, np.arange(first, stop, dtype=np.int32), panel, n_threads=1)
    return panel


def linear(x: np.ndarray, weight: Weight, out: np.ndarray, *, arithmetic: int = DECODING, n_threads: int) -> None:
    rows, columns = weight.shape
    need(x, "x", np.float32, None, columns)
    need_output(out, "out", len(x), rows)
    panel_rows = _panel_rows(weight)
    threads = threads_for(n_threads, x.shape[0] * rows * columns)
    park()
    with one_blas_thread():
        run_rows(_multiply_panels, -(-rows // panel_rows), threads, x, weight, panel_rows, out)
