"""Compiles functions with Numba, and keeps what it made for later runs.

Called by the `*_numba` modules, here and in `checkpoint`. Knows nothing of what the functions do.
"""

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options, without the GIL. Where no folder can be written each process compiles anew."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder for its cache
            return numba.njit(nogil=True, **options)(function)

    return compiled
