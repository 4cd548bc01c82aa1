"""Arguments that every implementation of a kernel but the reference must refuse, for the files of single kernels."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from . import agreement

Change = Callable[[np.ndarray], np.ndarray]


def as_float64(array: np.ndarray) -> np.ndarray:
    return np.zeros(array.shape, np.float64)  # not a cast: scratch may hold anything


def as_int64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64)


def one_axis_more(array: np.ndarray) -> np.ndarray:
    return array[None]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def first_half(array: np.ndarray) -> np.ndarray:
    return array[: len(array) // 2]


def one_more(axis: int) -> Change:
    """Appends the first entry of an axis to it."""

    def change(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, array.take([0], axis)], axis)

    change.__name__ = f"one_more_on_axis_{axis}"
    return change


def wrong_floats(name: str, n_axes: int) -> list[tuple[str, Change]]:
    """For `wrong_arguments`: f32 of another dtype, with an axis more, and longer along each of the first n_axes."""
    return [(name, change) for change in (as_float64, one_axis_more, *map(one_more, range(n_axes)))]


def wrong_arguments(*wrong: tuple[str, Change]) -> pytest.MarkDecorator:
    """Parametrises a test over (name, change): a parameter, and what makes its array one that must be refused."""
    return pytest.mark.parametrize(
        ("name", "change"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1].__name__}") for pair in wrong]
    )


@functools.cache
def last_case(stem: str) -> tuple[Any, ...]:
    """Shared, so only to be read: all cases are drawn for it."""
    *_, arguments = agreement.cases(stem)
    return arguments


def check_refuses(stem: str, function: Callable[..., None], name: str, change: Change) -> None:
    """The last case of the contract runs; with one array changed it raises ValueError and writes nothing."""
    arguments = tuple(np.copy(each) if isinstance(each, np.ndarray) else each for each in last_case(stem))
    function(*arguments, n_threads=1)
    position = agreement.parameter_names(stem).index(name)
    changed = list(arguments)
    changed[position] = change(arguments[position])
    before = [np.copy(array) for array in agreement.arrays_of(tuple(changed))]
    with pytest.raises(ValueError, match=r" "):
        function(*changed, n_threads=1)
    for old, array in zip(before, agreement.arrays_of(tuple(changed)), strict=True):
        np.testing.assert_array_equal(array, old)
