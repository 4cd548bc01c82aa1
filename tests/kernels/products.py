"""What the tests of the kernels that multiply have in common, beyond `agreement`."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig._kernels import implementations
from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.dequantize import reference as dequantize_reference
from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

from . import agreement

Change = Callable[[np.ndarray], np.ndarray]


def every_implementation_but(stem: str, *labels: str) -> pytest.MarkDecorator:
    """Parametrises a test over `function`, the implementations of a kernel without the named ones."""
    return pytest.mark.parametrize(
        "function",
        [pytest.param(function, id=label) for label, function in implementations(stem) if label not in labels],
    )


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


def mapped_weights(rng: np.random.Generator, shape: tuple[int, int], directory: Path) -> Iterator[Weight]:
    """`random_weights` in read-only memory maps, the scales too."""
    for number, weight in enumerate(random_weights(rng, shape)):
        codes = agreement.map_read_only(weight.codes, directory / f"codes{number}")
        scale = (
            weight.scale
            if weight.scale is None
            else agreement.map_read_only(weight.scale, directory / f"scale{number}")
        )
        geometry = weight.group_size, weight.block_rows, weight.offset
        yield Weight(weight.format, shape, codes, scale, weight.scale_format, *geometry)


def decoded(weight: Weight) -> np.ndarray:
    """f64 (N, K)."""
    out = np.empty(weight.shape, np.float32)
    dequantize_reference(weight, all_rows(weight), out, n_threads=1)
    return out.astype(np.float64)
