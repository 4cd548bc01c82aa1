"""What holds for every implementation of every kernel: checks for `test_contracts` and the files of single kernels.

Arguments come from the contract's `cases`, generated anew for each run: same seed, same values, own memory.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig._kernels import REGISTRY, implementations
from deepzig._kernels.weight import Weight

SEED = 20


def every_implementation(stem: str) -> pytest.MarkDecorator:
    """Parametrises a test over `function`, all implementations of a kernel, the reference too."""
    return pytest.mark.parametrize(
        "function", [pytest.param(function, id=label) for label, function in implementations(stem)]
    )


def every_implementation_but(stem: str, *labels: str) -> pytest.MarkDecorator:
    """Parametrises a test over `function`, the implementations of a kernel without the named ones."""
    return pytest.mark.parametrize(
        "function",
        [pytest.param(function, id=label) for label, function in implementations(stem) if label not in labels],
    )


def every_compiled(stem: str) -> pytest.MarkDecorator:
    """The same over its compiled implementations; one skipped test if there are none."""
    compiled = [
        pytest.param(function, id=label) for label, function in implementations(stem) if label.startswith("cython/")
    ]
    return pytest.mark.parametrize("function", compiled)


def cases(stem: str) -> Iterator[tuple[Any, ...]]:
    return REGISTRY[stem].cases(np.random.default_rng(SEED))


@functools.cache
def expected_of(stem: str) -> list[tuple[Any, ...]]:
    """The arguments of each case as the reference leaves them; shared, so only to be read."""
    arguments = list(cases(stem))
    for one in arguments:
        REGISTRY[stem].reference(*one, n_threads=1)
    return arguments


@functools.cache
def parameter_names(stem: str) -> tuple[str, ...]:
    """Without the keyword-only ones, which `cases` leaves out."""
    parameters = inspect.signature(REGISTRY[stem].reference).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def written_parameters(stem: str) -> frozenset[str]:
    """The parameters that the reference cannot do without write access to, and scratch."""
    written = {name for name in parameter_names(stem) if name.startswith("scratch")}
    arguments = next(found for found in cases(stem) if all(array.size > 1 for array in arrays_of(found)))
    for name, array in zip(parameter_names(stem), arguments, strict=True):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
            try:
                REGISTRY[stem].reference(*arguments, n_threads=1)
            except ValueError as error:
                assert "read-only" in str(error)
                written.add(name)
            array.flags.writeable = True
    return frozenset(written)


def arrays_of(arguments: tuple[Any, ...]) -> list[np.ndarray]:
    return [argument for argument in arguments if isinstance(argument, np.ndarray)]


def assert_close(stem: str, actual: tuple[Any, ...], expected: tuple[Any, ...], case: int) -> None:
    """Outputs agree within the contract's tolerance, inputs are unchanged."""
    for name, got, wanted in zip(parameter_names(stem), actual, expected, strict=True):
        if isinstance(got, np.ndarray) and not name.startswith("scratch"):
            np.testing.assert_allclose(got, wanted, err_msg=f"case {case}: {name}", **REGISTRY[stem].tolerance)


def check_against_reference(stem: str, function: Callable[..., None]) -> None:
    for case, (expected, actual) in enumerate(zip(expected_of(stem), cases(stem), strict=True)):
        function(*actual, n_threads=1)
        assert_close(stem, actual, expected, case)


def check_threads_do_not_matter(
    stem: str, function: Callable[..., None], n_threads: int = 2, most: int | None = None
) -> None:
    """1 and n_threads give the same bits, in the first `most` cases."""
    for case, (one, two) in enumerate(islice(zip(cases(stem), cases(stem), strict=True), most)):
        function(*one, n_threads=1)
        function(*two, n_threads=n_threads)
        for name, alone, together in zip(parameter_names(stem), one, two, strict=True):
            if isinstance(alone, np.ndarray) and not name.startswith("scratch"):
                np.testing.assert_array_equal(alone, together, err_msg=f"case {case}: {name}")


def check_rows_are_independent(stem: str, function: Callable[..., None], *sliced: str) -> None:
    """A row has the same bits alone as among others. `sliced` have the rows as first axis."""
    names = parameter_names(stem)
    for case, (together, alone) in enumerate(zip(cases(stem), cases(stem), strict=True)):
        n_rows = len(together[names.index(sliced[0])])
        function(*together, n_threads=2)
        for t in sorted({0, n_rows // 3, n_rows - 1} if n_rows else ()):
            one = [
                argument[t : t + 1] if name in sliced else argument
                for name, argument in zip(names, alone, strict=True)
            ]
            function(*one, n_threads=1)
            for name, row, all_rows in zip(names, one, together, strict=True):
                if name in sliced:
                    message = f"case {case}, row {t}: {name}"
                    np.testing.assert_array_equal(row, all_rows[t : t + 1], err_msg=message)


def check_writes_only_its_output(stem: str, function: Callable[..., None]) -> None:
    """Where an array is a window of a larger one, everything around the window stays as it was."""
    for case, arguments in enumerate(cases(stem)):
        around = [(array, _outside(array)) for array in arrays_of(arguments) if array.base is not None]
        before = [_bytes_of(array.base)[mask].copy() for array, mask in around]
        function(*arguments, n_threads=2)
        for (array, mask), old in zip(around, before, strict=True):
            np.testing.assert_array_equal(_bytes_of(array.base)[mask], old, err_msg=f"case {case}")


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _outside(window: np.ndarray) -> np.ndarray:
    """Of the bytes of `window.base`, those that are not in the window: bool."""
    base = window.base
    mask = np.ones(base.nbytes, bool)
    offset = window.ctypes.data - base.ctypes.data
    shape, strides = (*window.shape, window.itemsize), (*window.strides, 1)
    np.ndarray(shape, bool, buffer=mask, offset=min(offset, base.nbytes), strides=strides)[...] = False
    return mask


def check_read_only_maps(stem: str, function: Callable[..., None], directory: Path) -> None:
    """Inputs may be read-only memory maps, as checkpoints are."""
    for case, (expected, given) in enumerate(zip(expected_of(stem), cases(stem), strict=True)):
        mapped = tuple(
            argument if name in written_parameters(stem) else map_read_only(argument, directory / f"{position}.bin")
            for position, (name, argument) in enumerate(zip(parameter_names(stem), given, strict=True))
        )
        function(*mapped, n_threads=2)
        assert_close(stem, mapped, expected, case)


def map_read_only(argument: Any, path: Path) -> Any:
    if isinstance(argument, Weight):
        codes = map_read_only(argument.codes, path)
        return Weight(
            argument.format,
            argument.shape,
            codes,
            argument.scale,
            argument.scale_format,
            argument.group_size,
            argument.block_rows,
            argument.offset,
        )
    if not isinstance(argument, np.ndarray) or argument.size == 0:
        return argument
    path.unlink(missing_ok=True)  # the map of an earlier case keeps the old file
    np.ascontiguousarray(argument).tofile(path)
    return np.memmap(path, argument.dtype, "r", shape=argument.shape)
