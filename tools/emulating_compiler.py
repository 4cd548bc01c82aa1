"""A C compiler that builds for AVX512 and AMX what any CPU with AVX2 can run: `emulated_isas.py` gives it to setup.py.

Flags of these instruction sets become macros for the headers of tests/emulation, which come before the compiler's own.
"""

import subprocess
import sys
from pathlib import Path

import simde_py

HEADERS = Path(__file__).resolve().parent.parent / "tests/emulation"


def emulated(arguments: list[str]) -> list[str]:
    """The command line without flags that this CPU may not know what to do with."""
    command = ["cc", f"-I{HEADERS}", f"-I{simde_py.get_include()}"]
    for argument in arguments:
        if argument.startswith(("-mavx512", "-mamx")):
            command.append("-DEMULATED_" + argument.removeprefix("-m").upper().replace("-", "_"))
        else:
            command.append("-O1" if argument == "-O3" else argument)  # it is compiled more often than run
    return command


if __name__ == "__main__":
    raise SystemExit(subprocess.run(emulated(sys.argv[1:])).returncode)
