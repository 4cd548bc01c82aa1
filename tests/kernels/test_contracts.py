"""Every implementation of every kernel against its contract. A new one is tested as soon as it is registered."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepzig._kernels import REGISTRY, implementations

from . import agreement

every_kernel = pytest.mark.parametrize(
    ("stem", "function"),
    [
        pytest.param(stem, function, id=f"{stem}-{label}")
        for stem in REGISTRY
        for label, function in implementations(stem)
    ],
)


@every_kernel
def test_agrees_with_the_reference(stem: str, function: Callable[..., None]) -> None:
    agreement.check_against_reference(stem, function)


@every_kernel
def test_threads_do_not_matter(stem: str, function: Callable[..., None]) -> None:
    agreement.check_threads_do_not_matter(stem, function)


@every_kernel
def test_fewer_than_one_thread_are_one(stem: str, function: Callable[..., None]) -> None:
    for n_threads in (0, -1):
        agreement.check_threads_do_not_matter(stem, function, n_threads, most=4)


@every_kernel
def test_writes_only_its_output(stem: str, function: Callable[..., None]) -> None:
    agreement.check_writes_only_its_output(stem, function)


@every_kernel
def test_reads_read_only_memory_maps(stem: str, function: Callable[..., None], tmp_path: Path) -> None:
    agreement.check_read_only_maps(stem, function, tmp_path)
