"""Every kernel has a contract, a test, and implementations that can be called alike."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import deepzig._kernels
from deepzig._kernels import ACTIVE, FOR_PROMPTS, REGISTRY, build_report, implementations, in_a_line, table
from deepzig._kernels._isa import ISA_NAMES

from .agreement import parameter_names

KERNELS = Path(deepzig._kernels.__file__).parent
STEMS = sorted(REGISTRY)


def test_every_implementation_file_belongs_to_a_registered_kernel() -> None:
    stems = {path.stem.removesuffix("_cython") for path in KERNELS.glob("*_cython.pyx")}
    stems |= {path.stem.removesuffix("_numba") for path in KERNELS.glob("[!_]*_numba.py")}
    assert stems == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_the_contract_is_complete(stem: str) -> None:
    kernel = REGISTRY[stem]
    assert len(kernel.doc.strip().splitlines()) >= 3
    assert "f32" in kernel.doc + (kernel.reference.__doc__ or ""), "no shapes"
    assert set(kernel.tolerance) == {"rtol", "atol"}
    assert kernel.isas == tuple(name for name in ISA_NAMES if name in kernel.isas)
    assert kernel.isas[0] == "plain", "a CPU without the other ISAs would run it slowly"
    assert (Path(__file__).parent / f"test_{stem}.py").exists()


@pytest.mark.parametrize("stem", STEMS)
def test_cases_and_cost(stem: str) -> None:
    names = parameter_names(stem)
    cases = list(REGISTRY[stem].cases(np.random.default_rng(0)))
    assert len(cases) >= 3
    for arguments in cases:
        assert len(arguments) == len(names)
        n_bytes, n_operations = REGISTRY[stem].cost(*arguments)
        assert n_bytes >= 0
        assert n_operations >= 0
    largest = max(REGISTRY[stem].cost(*arguments) for arguments in cases)
    assert min(largest) > 0


@pytest.mark.parametrize("stem", STEMS)
def test_implementations_are_called_alike(stem: str) -> None:
    """Same names, kinds and defaults of parameters; n_threads is the last, by keyword only."""
    expected = shape_of_signature(REGISTRY[stem].reference)
    assert expected[-1] == ("n_threads", inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty)
    for label, function in implementations(stem):
        assert shape_of_signature(function) == expected, label
        assert function.__name__ in (stem, "reference")


def shape_of_signature(function: object) -> list[tuple[str, object, object]]:
    assert callable(function)
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("stem", STEMS)
def test_what_is_active_is_available(stem: str) -> None:
    (row,) = [row for row in table() if row.stem == stem]
    assert row.runs == ACTIVE[stem]
    assert row.runs in row.available
    assert row.available[0] == "reference"
    assert getattr(deepzig._kernels, stem) is dict(implementations(stem))[row.runs]


def test_a_line_counts_the_kernels_of_prompts_beside_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig._kernels._pick.ACTIVE", dict.fromkeys("abc", "cython/plain") | {"d": "numba"})
    monkeypatch.setitem(FOR_PROMPTS, "experts", "blas")
    monkeypatch.setitem(FOR_PROMPTS, "linear", "blas")
    assert in_a_line() == "3 cython/plain, 2 blas for prompts, 1 numba"


@pytest.mark.skipif(build_report().problem is not None, reason="nothing is compiled here")
@pytest.mark.parametrize("stem", STEMS)
def test_every_isa_that_this_cpu_runs_is_built(stem: str) -> None:
    """What the compiler does not know is left out with a reason; nothing else may be missing."""
    reasons = build_report().not_built
    assert all("does not know" in reason for reason in reasons.values())
    available = {label for label, _ in implementations(stem)}
    usable = [isa for isa in REGISTRY[stem].isas if not deepzig._kernels._pick.missing_flags(isa)]
    for isa in usable:
        assert f"cython/{isa}" in available or f"deepzig._kernels.{stem}_cython_{isa}" in reasons
