"""Numbers that users give, of whatever Python or NumPy type, as Python's own.

Called by `sampling`, `loading`, `engine` and `llm`.
"""

import math
from numbers import Integral, Real
from typing import Any

from deepzig.errors import RequestError


def as_integer(name: str, value: Any, *, least: int | None = None) -> int:
    """The number as an int. Raises RequestError if it is no integer, or below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} {value!r} is no integer")
    if least is not None and value < least:
        raise RequestError(f"{name} {value} is below {least}")
    return int(value)


def as_number(name: str, value: Any, least: float, greatest: float) -> float:
    """The number as a float. Raises RequestError if it is no number, not finite, or out of range."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else _as_float(value)
    if not math.isfinite(number):
        raise RequestError(f"{name} {value!r} is no finite number")
    if number < least:
        raise RequestError(f"{name} {value} is below {least}")
    if number > greatest:
        raise RequestError(f"{name} {value} is above {greatest}")
    return number


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.inf
