"""Array arguments of the kernels that are not compiled ahead: checks, and the one type that Numba compiles for.

Called by the `*_numba` and `*_blas` modules; the counterpart of `_array.pyx`. Knows nothing of what kernels compute.
"""

from typing import Any

import numpy as np

MIN_WORK = 1 << 18  # multiplications that are worth a second thread: handing over takes some 50 us


def need(array: Any, name: str, dtype: type, *shape: int | None) -> None:
    """Raises ValueError unless `array` has this dtype and shape; None stands for any size."""
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != dtype
        or array.ndim != len(shape)
        or any(size is not None and size != found for size, found in zip(shape, array.shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be {np.dtype(dtype)} ({wanted}), not {found}")


def need_output(array: Any, name: str, *shape: int | None, dtype: type = np.float32) -> None:
    """The same for an array that the kernel writes."""
    need(array, name, dtype, *shape)
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writable")


def packed(array: np.ndarray) -> np.ndarray:
    """`array` itself if it is C-contiguous and writable, else such a copy, so that Numba compiles for one type only."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def unpack(result: np.ndarray, out: np.ndarray) -> None:
    """Moves the result to `out` if `packed` has made a copy of it."""
    if result is not out:
        out[...] = result


def threads_for(n_threads: int, work: int) -> int:
    """n_threads, or 1 if `work` multiplications are done before other threads have begun."""
    return n_threads if work >= MIN_WORK else 1
