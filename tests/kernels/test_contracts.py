"""Every implementation of every kernel against its contract. A new one is tested as soon as it is registered."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deepzig._kernels import REGISTRY, implementations
from deepzig._kernels.weight import ExpertWeights, Weight

from . import agreement
from .refusals import last_case

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


@pytest.mark.parametrize("stem", ["absorb_query", "absorb_value", "dequantize", "experts", "linear"])
def test_compiled_kernels_refuse_what_describes_no_matrix(stem: str) -> None:
    """They read where a descriptor says."""
    no_weight = SimpleNamespace(descriptor=np.zeros(9, np.int64), descriptors=np.zeros((1, 3, 9), np.int64))
    changed = [no_weight if isinstance(each, Weight | ExpertWeights) else each for each in last_case(stem)]
    for label, function in implementations(stem):
        if label.startswith("cython"):
            with pytest.raises(ValueError, match=r"weights?\.descriptors? "):
                function(*changed, n_threads=1)
