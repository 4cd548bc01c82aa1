"""Chooses one implementation per kernel, once, when `deepzig._kernels` is imported.

Called by `_kernels/__init__.py` (`pick`, `pick_for_prompts`), by tests and bench (`implementations`), by `deepzig
kernels` (`table`, `build_report`), by `deepzig info` and the log (`in_a_line`). Reads DEEPZIG_ISA and DEEPZIG_KERNEL;
knows nothing of what the kernels compute.

An implementation is a module beside the contract `<stem>.py`, with one function named like the stem:
`<stem>_cython_<isa>` (label "cython/<isa>"), `<stem>_numba` and other portable ones (label "numba", "blas", ...), and
`reference` in the contract itself.
"""

import functools
import importlib
import importlib.util
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepzig._kernels._isa import ISA_NAMES, ISAS
from deepzig.errors import KernelError

PACKAGE = "deepzig._kernels"
Implementation = Callable[..., None]


@dataclass(frozen=True)
class Kernel:
    """The contract of one kernel, as its module `_kernels/<stem>.py` states it."""

    stem: str
    doc: str  # formula, shapes, rounding and tie rules
    reference: Implementation
    cases: Callable[[np.random.Generator], Iterator[tuple[Any, ...]]]  # argument tuples without n_threads
    tolerance: dict[str, float]  # rtol and atol against the reference; both 0 means equal bit for bit
    cost: Callable[..., tuple[int, int]]  # (bytes touched at least, floating point operations) of one call
    isas: tuple[str, ...]  # what setup.py compiles
    portable: tuple[str, ...]  # other implementations, best first

    @classmethod
    def of(cls, stem: str) -> "Kernel":
        module = importlib.import_module(f"{PACKAGE}.{stem}")
        return cls(
            stem=stem,
            doc=module.__doc__ or "",
            reference=module.reference,
            cases=module.cases,
            tolerance=module.TOLERANCE,
            cost=module.cost,
            isas=tuple(name for name in ISA_NAMES if name in module.ISAS),
            portable=getattr(module, "PORTABLE", ("numba",)),
        )


@dataclass(frozen=True)
class KernelRow:
    """One line of `deepzig kernels`."""

    stem: str
    runs: str
    prompts: str  # what runs for rows of prompts; mostly the same
    available: tuple[str, ...]
    forced_by: str | None


@dataclass(frozen=True)
class BuildReport:
    """What setup.py wrote about the compiled kernels: `problem` if there are none, else what was left out and why."""

    problem: str | None
    not_built: dict[str, str]


REGISTRY: dict[str, Kernel] = {}
ACTIVE: dict[str, str] = {}
FOR_PROMPTS: dict[str, str] = {}  # where prompts have another implementation


@functools.cache
def build_report() -> BuildReport:
    """Reads `_build.json`, which each build leaves beside the kernels."""
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        source = path.parent.parent.parent
        return BuildReport(f"nothing is compiled in {source}: leave it for an installed deepzig, or run make build", {})
    report = json.loads(path.read_text(encoding="utf-8"))
    return BuildReport(report["problem"], report["not_built"])


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(f"{PACKAGE}.{name}") is not None


@functools.cache
def missing_flags(isa_name: str) -> tuple[str, ...]:
    """Why this machine cannot run an ISA: the CPU flags that it lacks, or that the operating system withholds."""
    if not _has_module("_cpuid"):
        return ("compiled module _cpuid",)
    from deepzig._kernels import _cpuid

    needed = ISAS[ISA_NAMES.index(isa_name)].cpu_flags
    has, usable = _cpuid.cpu_flags(), _cpuid.usable_flags()
    missing = [
        f"CPU flag {flag}" if flag not in has else f"operating system support for {flag}"
        for flag in needed
        if flag not in usable
    ]
    if isa_name == "amx" and not missing and not _cpuid.request_amx():
        missing.append("permission of the operating system to use AMX tiles")
    return tuple(missing)


def highest_isa() -> str | None:
    """The highest ISA that this machine can run; None if nothing is compiled."""
    return next((name for name in reversed(ISA_NAMES) if not missing_flags(name)), None)


def _isa_limit() -> str:
    """The highest ISA that may be picked: DEEPZIG_ISA, or no limit. Raises KernelError if this machine lacks it."""
    name = os.environ.get("DEEPZIG_ISA", "")
    if not name:
        return ISA_NAMES[-1]
    if name not in ISA_NAMES:
        raise KernelError(f"DEEPZIG_ISA={name!r} is unknown: use one of {', '.join(ISA_NAMES)}")
    if missing := missing_flags(name):
        highest = highest_isa()
        advice = f"the highest that can is {highest}" if highest else "unset it"
        raise KernelError(f"DEEPZIG_ISA={name} cannot run here: missing {missing[0]}; {advice}")
    return name


@functools.cache
def _forced() -> dict[str, str]:
    """DEEPZIG_KERNEL="stem:implementation,..." as a dictionary."""
    forced = {}
    for item in filter(None, os.environ.get("DEEPZIG_KERNEL", "").split(",")):
        stem, colon, implementation = item.strip().partition(":")
        if not (colon and implementation):
            raise KernelError(f"DEEPZIG_KERNEL has {item!r}: write kernel:implementation, as in rms_norm:numba")
        if not (stem.isidentifier() and _has_module(f"{stem}_numba")):
            raise KernelError(f"DEEPZIG_KERNEL names {stem!r}, which is no kernel; `deepzig kernels` lists them")
        forced[stem] = implementation
    return forced


def _load(stem: str, label: str) -> Implementation:
    """Imports one implementation. A built module that does not load is an error, never a silent fallback."""
    if label == "reference":
        return REGISTRY[stem].reference
    name = f"{stem}_{label.replace('/', '_')}"
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except ImportError as error:
        raise KernelError(
            f"{stem}: {name} does not load ({error}); reinstall deepzig, or set DEEPZIG_KERNEL"
        ) from error
    function: Implementation = getattr(module, stem)
    return function


def _runnable_isas(kernel: Kernel) -> list[str]:
    """The ISAs that are built for a kernel and run here, best first."""
    return [
        isa for isa in reversed(kernel.isas) if _has_module(f"{kernel.stem}_cython_{isa}") and not missing_flags(isa)
    ]


def _why_not_compiled(kernel: Kernel, isa: str) -> str:
    """What keeps this machine from running a kernel compiled for `isa`."""
    module = f"{kernel.stem}_cython_{isa}"
    if isa not in kernel.isas:
        return f"it is compiled for {', '.join(kernel.isas) or 'no ISA'} only"
    if missing := missing_flags(isa):
        return f"missing {', '.join(missing)}"
    report = build_report()
    reason = report.problem or report.not_built.get(f"{PACKAGE}.{module}", "the build left it out")
    return f"missing file {module}: {reason}"


def _forced_label(kernel: Kernel, wanted: str) -> str:
    """The label that DEEPZIG_KERNEL asks for. Raises KernelError if it cannot run here."""
    implementation, _, isa = wanted.partition("/")
    complaint = f"DEEPZIG_KERNEL={kernel.stem}:{wanted} cannot run here: "
    if implementation == "cython":
        runnable = _runnable_isas(kernel)
        limit = ISA_NAMES.index(_isa_limit())
        allowed = [name for name in runnable if ISA_NAMES.index(name) <= limit]
        if isa in runnable:
            return wanted
        if not isa and allowed:
            return f"cython/{allowed[0]}"
        raise KernelError(complaint + _why_not_compiled(kernel, isa or kernel.isas[0] if kernel.isas else isa))
    if wanted == "reference" or (wanted in kernel.portable and _has_portable(kernel, wanted)):
        return wanted
    known = ", ".join(["cython", *kernel.portable, "reference"])
    raise KernelError(f"{complaint}{kernel.stem} has {known}")


def _best_label(kernel: Kernel) -> str:
    limit = _isa_limit()
    allowed = [isa for isa in _runnable_isas(kernel) if ISA_NAMES.index(isa) <= ISA_NAMES.index(limit)]
    if os.environ.get("DEEPZIG_ISA") and limit in kernel.isas and limit not in allowed:
        raise KernelError(f"DEEPZIG_ISA={limit} cannot be used: {_why_not_compiled(kernel, limit)}")
    if allowed:
        return f"cython/{allowed[0]}"
    for name in kernel.portable:
        if _has_portable(kernel, name):
            return name
    _warn_of_reference()
    return "reference"


def _has_portable(kernel: Kernel, name: str) -> bool:
    """Numba itself may be missing, on a Python that it does not support yet."""
    return _has_module(f"{kernel.stem}_{name}") and (name != "numba" or importlib.util.find_spec("numba") is not None)


@functools.cache
def _warn_of_reference() -> None:
    reason = build_report().problem or "they do not fit this CPU"
    warnings.warn(
        f"deepzig runs slow NumPy kernels, because compiled ones are missing ({reason}); see `deepzig kernels`",
        RuntimeWarning,
        stacklevel=2,
    )


def pick(stem: str) -> Implementation:
    """The implementation of a kernel for this process: forced, else compiled, else portable, else the reference.

    Raises KernelError if DEEPZIG_ISA or DEEPZIG_KERNEL asks for what this machine cannot run.
    """
    kernel = REGISTRY[stem] = Kernel.of(stem)
    wanted = _forced().get(stem)
    label = ACTIVE[stem] = _forced_label(kernel, wanted) if wanted else _best_label(kernel)
    return _load(stem, label)


def pick_for_prompts(stem: str) -> Implementation:
    """The implementation of a picked kernel for rows of prompts, called with arithmetic FAST or EXACT.

    It is BLAS unless one is forced or the picked one is compiled with vectors, whose own products of so many rows are
    measured to be as fast or faster (docs/log.md).
    """
    label = ACTIVE[stem]
    if stem in _forced() or label == "reference" or (label.startswith("cython/") and label != "cython/plain"):
        return _load(stem, label)
    FOR_PROMPTS[stem] = "blas"
    return _load(stem, "blas")


# `long_chunk`, exact and fast, where it has been measured.
_LONG_CHUNKS = {"cython/avx2": (96, 8), "cython/avx512": (64, 8), "cython/avx512_vnni": (96, 16)}


def long_chunk() -> dict[str, int]:
    """By precision, the rows of a chunk of a prompt from which products for prompts are faster than those for decoding.

    In a shorter chunk each expert sees one or two rows, for which preparing its weights costs as much as using them
    (docs/log.md).
    """
    least = min(_LONG_CHUNKS.get(ACTIVE[stem], (16, 8)) for stem in ("linear", "experts"))
    return dict(zip(("exact", "fast"), least, strict=True))


def _available(kernel: Kernel) -> tuple[str, ...]:
    portable = [name for name in reversed(kernel.portable) if _has_portable(kernel, name)]
    return ("reference", *portable, *(f"cython/{isa}" for isa in reversed(_runnable_isas(kernel))))


def implementations(stem: str) -> list[tuple[str, Implementation]]:
    """Every implementation of a kernel that this CPU can run, as (label, function), slowest first."""
    return [(label, _load(stem, label)) for label in _available(REGISTRY[stem])]


def in_a_line() -> str:
    """How many kernels run what, as "11 cython/plain, 2 numba, 2 blas for prompts"."""
    counts = Counter([*ACTIVE.values(), *(f"{label} for prompts" for label in FOR_PROMPTS.values())])
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())


def table() -> list[KernelRow]:
    """What runs and what could, for `deepzig kernels`."""
    rows = []
    for stem, kernel in REGISTRY.items():
        forced_by = "DEEPZIG_KERNEL" if stem in _forced() else "DEEPZIG_ISA" if os.environ.get("DEEPZIG_ISA") else None
        prompts = FOR_PROMPTS.get(stem, ACTIVE[stem])
        rows.append(KernelRow(stem, ACTIVE[stem], prompts, _available(kernel), forced_by))
    return rows
