"""Choice of implementations: what the machine allows, and what DEEPZIG_ISA and DEEPZIG_KERNEL force."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepzig._kernels import REGISTRY, _pick, build_report
from deepzig._kernels._isa import ISA_NAMES, ISAS
from deepzig.errors import KernelError

SHOW = "import deepzig._kernels as k; print(*(f'{stem}={label}' for stem, label in k.ACTIVE.items()))"
needs_build = pytest.mark.skipif(build_report().problem is not None, reason="nothing is compiled here")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPZIG_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=kept | environment, capture_output=True, text=True, check=False
    )


def active(**environment: str) -> dict[str, str]:
    result = run_python(SHOW, **environment)
    assert result.returncode == 0, result.stderr
    return dict(item.split("=") for item in result.stdout.split())


def refusal(**environment: str) -> str:
    """The last line of the error that the import raises."""
    result = run_python(SHOW, **environment)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("deepzig.errors.KernelError: ")
    return last


def usable() -> list[str]:
    return [name for name in ISA_NAMES if not _pick.missing_flags(name)]


def test_rows_only_add_flags() -> None:
    """`pick` treats the ISAs as a ladder."""
    for lower, higher in itertools.pairwise(ISAS):
        assert set(lower.cpu_flags) < set(higher.cpu_flags)
        assert set(lower.compiler_flags) < set(higher.compiler_flags)


@needs_build
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_cpu_flags_agree_with_linux() -> None:
    """Linux lists a flag only if CPU and kernel support it, under slightly other names."""
    from deepzig._kernels import _cpuid

    text = Path("/proc/cpuinfo").read_text()
    listed = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split(":")[1].split()} - {
        "_"
    }
    known = {flag: flag.replace("-", "_") for flag in ISAS[-1].cpu_flags}
    known |= {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}
    assert _cpuid.usable_flags() == {flag for flag, name in known.items() if name in listed}
    assert _cpuid.usable_flags() <= _cpuid.cpu_flags()


@needs_build
def test_the_best_usable_isa_is_picked() -> None:
    for stem, label in active().items():
        best = [isa for isa in REGISTRY[stem].isas if isa in usable()][-1]
        assert label == f"cython/{best}"


@needs_build
@pytest.mark.parametrize("limit", usable())
def test_deepzig_isa_is_an_upper_limit(limit: str) -> None:
    for stem, label in active(DEEPZIG_ISA=limit).items():
        allowed = [isa for isa in REGISTRY[stem].isas if ISA_NAMES.index(isa) <= ISA_NAMES.index(limit)]
        assert label == f"cython/{allowed[-1]}"


@needs_build
@pytest.mark.parametrize("limit", ISA_NAMES[1:])
def test_an_isa_is_usable_or_refused_by_flag(limit: str) -> None:
    if limit in usable():
        assert active(DEEPZIG_ISA=limit)
        return
    complaint = refusal(DEEPZIG_ISA=limit)
    assert f"DEEPZIG_ISA={limit} cannot run here: missing CPU flag" in complaint
    assert complaint.count("flag") == 1 and complaint.endswith(f"; the highest that can is {usable()[-1]}")
    missing = refusal(DEEPZIG_KERNEL=f"linear:cython/{limit}")
    assert "missing CPU flag" in missing or "compiled for" in missing


def test_unknown_names_are_refused() -> None:
    assert "'sse9' is unknown: use one of plain, avx2" in refusal(DEEPZIG_ISA="sse9")
    assert "'nothing', which is no kernel" in refusal(DEEPZIG_KERNEL="nothing:numba")
    assert "'weight', which is no kernel" in refusal(DEEPZIG_KERNEL="weight:numba")
    assert "write kernel:implementation" in refusal(DEEPZIG_KERNEL="rms_norm")
    assert "rms_norm has cython, numba, reference" in refusal(DEEPZIG_KERNEL="rms_norm:fortran")


@needs_build
def test_deepzig_kernel_forces_single_kernels() -> None:
    labels = active(DEEPZIG_KERNEL="rms_norm:numba, softmax:reference,swiglu:cython/plain")
    assert [labels["rms_norm"], labels["softmax"], labels["swiglu"]] == ["numba", "reference", "cython/plain"]
    assert labels["rope"] == active()["rope"]
    assert active(DEEPZIG_KERNEL="rms_norm:cython", DEEPZIG_ISA="plain")["rms_norm"] == "cython/plain"


@needs_build
def test_numba_is_not_imported_unless_it_is_picked() -> None:
    assert run_python("import deepzig._kernels, sys; sys.exit('numba' in sys.modules)").returncode == 0
    code = "import deepzig._kernels, sys; sys.exit('numba' not in sys.modules)"
    assert run_python(code, DEEPZIG_KERNEL="rope:numba").returncode == 0


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a build whose compiler failed on one module."""
    found = _pick._has_module
    monkeypatch.setattr(_pick, "_has_module", lambda name: name != "rms_norm_cython_plain" and found(name))
    monkeypatch.setenv("DEEPZIG_KERNEL", "rms_norm:cython/plain")
    _pick._forced.cache_clear()
    try:
        with pytest.raises(KernelError, match="missing file rms_norm_cython_plain"):
            _pick._forced_label(REGISTRY["rms_norm"], "cython/plain")
    finally:
        _pick._forced.cache_clear()


WITHOUT_COMPILED = """
import importlib.util, sys
real = importlib.util.find_spec
hidden = lambda name: "_cython_" in name or name.endswith("_cpuid") or name in {hidden!r}
importlib.util.find_spec = lambda name, package=None: None if hidden(name) else real(name, package)
import deepzig._kernels as k
print(*(f"{{stem}}={{label}}" for stem, label in k.ACTIVE.items()))
"""


def test_without_compiled_kernels_numba_runs() -> None:
    result = run_python("import warnings; warnings.resetwarnings()\n" + WITHOUT_COMPILED.format(hidden=[]))
    assert result.returncode == 0, result.stderr
    labels = dict(item.split("=") for item in result.stdout.split())
    assert labels["rms_norm"] == labels["expert_gate"] == "numba"


def test_without_numba_too_the_reference_runs_with_one_warning() -> None:
    code = WITHOUT_COMPILED.format(hidden=["numba"])
    result = run_python("import warnings; warnings.resetwarnings(); warnings.simplefilter('always')\n" + code)
    assert result.returncode == 0, result.stderr
    labels = dict(item.split("=") for item in result.stdout.split())
    assert labels["rms_norm"] == labels["softmax"] == "reference"
    assert result.stderr.count("RuntimeWarning") == 1


def for_prompts(**environment: str) -> dict[str, str]:
    """What prompts get in place of what decodes."""
    result = run_python("import deepzig._kernels as k, json; print(json.dumps(k.FOR_PROMPTS))", **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@needs_build
@pytest.mark.skipif("avx2" not in usable(), reason="needs AVX2")
def test_prompts_are_left_to_blas_where_it_is_faster() -> None:
    assert for_prompts(DEEPZIG_ISA="plain") == {"experts": "blas", "linear": "blas"}
    assert for_prompts(DEEPZIG_KERNEL="linear:numba,experts:numba") == {}
    assert for_prompts(DEEPZIG_ISA="avx2") == for_prompts() == {}
