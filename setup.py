"""Builds the compiled kernels: one extension module per kernel and instruction set. Metadata is in pyproject.toml.

Each `_kernels/<stem>_cython.pyx` is copied to `build/isa/<stem>_cython_<isa>.pyx` and compiled with the flags of that
ISA (`_kernels/_isa.py`), for the ISAs that its contract `_kernels/<stem>.py` lists. What cannot be compiled is left
out: deepzig then runs on Numba, and `_kernels/_build.json` says why. DEEPZIG_DEBUG=1 builds for a debugger.
"""

import ast
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

PACKAGE = "deepzig._kernels"
KERNELS = Path("deepzig/_kernels")
ISA_DATA = runpy.run_path(str(KERNELS / "_isa.py"))
BASELINE_MODULES = ("_array", "_cpuid", "_pool")
UTILITY_MODULE = "_cyutility"  # code that Cython would otherwise repeat in every extension
DEBUG = os.environ.get("DEEPZIG_DEBUG", "") not in ("", "0")
COPIES = Path("build/isa-debug" if DEBUG else "build/isa")
ON_X86 = platform.machine().lower() in ("x86_64", "amd64")

_LOCAL_HEADER = re.compile(r'(?:from|include)\s+"([\w.]+\.h)"')
_LOCAL_CIMPORT = re.compile(r"from deepzig\._kernels\.(\w+) cimport")


class KernelExtension(Extension):
    """`cythonize(exclude_failures=True)` keeps failed extensions in a set; setuptools' own cannot be hashed."""

    __hash__ = object.__hash__


def contract_isas(stem: str) -> tuple[str, ...]:
    """The literal `ISAS = (...)` of a kernel's contract, read without importing it."""
    for node in ast.parse((KERNELS / f"{stem}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["ISAS"]:
            return ast.literal_eval(node.value)
    raise SystemExit(f"{KERNELS / stem}.py: no line 'ISAS = (...)', which says what to compile")


def files_behind(source: Path, found: dict[Path, None] | None = None) -> list[str]:
    """The headers and .pxd files of the package that a source needs, directly or through others."""
    found = {} if found is None else found
    text = source.read_text(encoding="utf-8")
    for path in [KERNELS / name for name in _LOCAL_HEADER.findall(text)] + [
        KERNELS / f"{name}.pxd" for name in _LOCAL_CIMPORT.findall(text)
    ]:
        if path.exists() and path not in found:
            found[path] = None
            files_behind(path, found)
    return [str(path) for path in found]


def extension(module: str, source: Path, flags: tuple[str, ...]) -> Extension:
    """One extension, compiled from a copy of `source` that carries the module's name."""
    copy = COPIES / f"{module}.pyx"
    if not copy.exists() or copy.read_bytes() != source.read_bytes():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    common = ISA_DATA["DEBUG_COMPILER_FLAGS"] if DEBUG else ISA_DATA["COMPILER_FLAGS"]
    strip = [] if DEBUG or sys.platform != "linux" else ["-Wl,-s"]
    return KernelExtension(
        f"{PACKAGE}.{module}",
        [str(copy)],
        depends=["setup.py", str(KERNELS / "_isa.py"), *files_behind(source)],
        include_dirs=[str(KERNELS)],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=[*common, *flags],
        extra_link_args=["-pthread", *strip],
        optional=True,
    )


def extensions() -> list[Extension]:
    """Baseline modules first, then every kernel for every ISA of its contract."""
    built = [utility_extension()]
    built += [extension(module, KERNELS / f"{module}.pyx", ()) for module in BASELINE_MODULES]
    isas = {isa.name: isa for isa in ISA_DATA["ISAS"]}
    for source in sorted(KERNELS.glob("*_cython.pyx")):
        stem = source.stem.removesuffix("_cython")
        for name in contract_isas(stem):
            if ON_X86 or not isas[name].x86_only:
                built.append(extension(f"{stem}_cython_{name}", source, isas[name].compiler_flags))
    return built


def utility_extension() -> Extension:
    source = str(COPIES / f"{UTILITY_MODULE}.c")
    return Extension(f"{PACKAGE}.{UTILITY_MODULE}", [source], extra_compile_args=["-O1", "-g0"], optional=True)


class BuildKernels(build_ext):
    """build_ext that leaves out what the compiler cannot do, and writes down what and why."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count() or 1
        if self.editable_mode:  # pip's folders are gone after the install; in these the next build finds its work
            self.build_lib, self.build_temp = "build/lib.editable", "build/temp.editable"
        # super().run() clears self.inplace while it works.
        self.into_source_tree = bool(self.inplace)
        self.not_built: dict[str, str] = {}
        self.broken: set[str] = set()
        self.problem: str | None = None

    def run(self) -> None:
        super().run()
        if self.broken and self.into_source_tree and not self.editable_mode:
            raise SystemExit(f"not built: {', '.join(sorted(self.broken))}")

    def build_extensions(self) -> None:
        self.problem = self.compiler_problem()
        known_flags = {isa.compiler_flags: self.problem is None and self.knows(isa) for isa in ISA_DATA["ISAS"]}
        kept = []
        for ext in self.extensions:
            flags = tuple(flag for flag in ext.extra_compile_args if flag.startswith("-m"))
            if known_flags[flags]:
                kept.append(ext)
            else:
                self.not_built[ext.name] = self.problem or "the compiler does not know the flags of this ISA"
        if self.previous_debug() != DEBUG:
            self.force = True
        self.extensions = kept
        if kept:
            self.translate()
        super().build_extensions()
        self.write_report()

    def compiler_problem(self) -> str | None:
        if sys.platform == "win32":
            return "compiled kernels need a POSIX system"
        if not self.compiles("#include <stdatomic.h>\n#include <pthread.h>\nint probe;\n", ()):
            return (
                f"no working C11 compiler ({self.compiler.compiler[0]} fails): install gcc and the headers of Python "
                "(Debian: gcc python3-dev) and then deepzig again"
            )
        if not self.compiles("#include <Python.h>\nint probe;\n", ()):
            return "the C headers of Python are missing: install them (Debian: python3-dev) and then deepzig again"
        return None

    def knows(self, isa: Any) -> bool:
        return not isa.x86_only or (
            ON_X86 and self.compiles("#include <immintrin.h>\nint probe;\n", isa.compiler_flags)
        )

    def compiles(self, text: str, flags: tuple[str, ...]) -> bool:
        source = Path(self.build_temp, "probe.c")
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text, encoding="utf-8")
        try:
            self.compiler.compile([str(source)], output_dir=str(source.parent), extra_postargs=list(flags))
        except (CCompilerError, BaseError):
            return False
        return True

    def translate(self) -> None:
        """Cython to C: sets the sources of the extensions, and drops those that Cython refuses."""
        import numpy
        from Cython.Build import cythonize

        utility = COPIES / f"{UTILITY_MODULE}.c"
        if not utility.exists():
            subprocess.run([sys.executable, "-m", "cython", f"--generate-shared={utility}"], check=True)
        from_cython = [ext for ext in self.extensions if ext.sources[0].endswith(".pyx")]
        translated = cythonize(
            from_cython,
            nthreads=int(self.parallel),
            force=self.force,
            exclude_failures=True,
            include_path=["."],
            shared_utility_qualified_name=f"{PACKAGE}.{UTILITY_MODULE}",
            compiler_directives={
                "language_level": "3",
                "binding": True,
                "boundscheck": DEBUG,
                "initializedcheck": DEBUG,
                "wraparound": False,
                "cdivision": True,
            },
        )
        sources = {ext.name: ext.sources for ext in translated}
        for ext in from_cython:
            if ext.name in sources:
                ext.sources = sources[ext.name]
                ext.include_dirs.append(numpy.get_include())
            else:
                self.extensions.remove(ext)
                self.leave_out(ext.name, "Cython does not translate it")

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (CCompilerError, BaseError) as error:
            self.leave_out(ext.name, f"does not compile: {error}")

    def leave_out(self, name: str, reason: str) -> None:
        """An install goes on without a module; a developer's own build reports it and fails at its end."""
        self.not_built[name] = reason
        self.broken.add(name)
        print(f"deepzig: {name} left out: {reason}", file=sys.stderr)

    def report_paths(self) -> list[Path]:
        paths = [Path(self.build_lib, KERNELS, "_build.json")]
        return [*paths, KERNELS / "_build.json"] if self.into_source_tree else paths

    def previous_debug(self) -> bool:
        path = Path(self.build_lib, KERNELS, "_build.json")
        return bool(json.loads(path.read_text(encoding="utf-8"))["debug"]) if path.exists() else DEBUG

    def write_report(self) -> None:
        """`_build.json`: {"problem": why nothing is compiled or null, "not_built": {module: reason}, "debug": bool}."""
        report = {"problem": self.problem, "not_built": self.not_built, "debug": DEBUG}
        for path in self.report_paths():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
