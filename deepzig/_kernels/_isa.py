"""The instruction sets that compiled kernels are built for, lowest first.

Read by `setup.py` (compiler flags; it loads this file by path) and by `_pick` (CPU flags). Pure data: imports nothing
of deepzig, so that the build needs no installed package.
"""

from typing import NamedTuple


class Isa(NamedTuple):
    """One way to compile a kernel, and what the CPU must offer to run it."""

    name: str
    x86_only: bool
    compiler_flags: tuple[str, ...]
    cpu_flags: tuple[str, ...]  # names of `_cpuid.cpu_flags()`


_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_AVX512_VNNI = (*_AVX512, "avx512vnni", "avx512vbmi")
_AVX512_BF16 = (*_AVX512_VNNI, "avx512bf16")
_AMX = (*_AVX512_BF16, "amx-tile", "amx-int8", "amx-bf16")


def _x86(name: str, cpu_flags: tuple[str, ...]) -> Isa:
    return Isa(name, True, tuple(f"-m{flag}" for flag in cpu_flags), cpu_flags)


# A CPU that runs one row runs all rows above it. `plain` is the baseline of the platform: SSE2, or NEON on aarch64.
ISAS = (
    Isa("plain", False, (), ()),
    _x86("avx2", _AVX2),
    _x86("avx512", _AVX512),
    _x86("avx512_vnni", _AVX512_VNNI),
    _x86("avx512_bf16", _AVX512_BF16),
    _x86("amx", _AMX),
)
ISA_NAMES = tuple(isa.name for isa in ISAS)

# No -ffast-math (infinite masks must survive) and no -fassociative-math (a row's sum has one fixed order). A function
# that is there for some ISAs only must fail the build: without -Werror the module would fail at import, on such a CPU.
COMPILER_FLAGS = (
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-unused-function",
    "-Werror=implicit-function-declaration",
    "-g0",
)
DEBUG_COMPILER_FLAGS = (
    "-O1",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-psabi",
    "-Wno-unused-function",
    "-Werror=implicit-function-declaration",
    "-g",
    "-UNDEBUG",
)
