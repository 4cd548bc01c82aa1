"""Tests the kernels of all x86 instruction sets on any CPU with AVX2: `make test-emulated`.

The tree is copied and built there by a compiler that emulates AVX512 and AMX (`emulating_compiler.py`), for a CPU that
seems to have both. What the emulation says of arithmetic and packing holds for the real CPU; of speed it says nothing.
Arguments are those of pytest, `tests/kernels` without any.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.clean_wheel import copy_tree, run

COMPILER = Path(__file__).resolve().with_name("emulating_compiler.py")
NOT_TRUE_HERE = "tests/kernels/test_isa.py::test_cpu_flags_agree_with_linux"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_tree(Path(folder))
        run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=copy, CC=f"{sys.executable} {COMPILER}")
        build = json.loads((copy / "deepzig/_kernels/_build.json").read_text())
        if build["problem"] or build["not_built"]:  # setup.py goes on without; then their tests would be missing
            raise SystemExit(f"not built: {build['problem'] or build['not_built']}")
        pytest = [sys.executable, "-m", "pytest", "-n", "2", "--deselect", NOT_TRUE_HERE]
        raise SystemExit(subprocess.run([*pytest, *(sys.argv[1:] or ["tests/kernels"])], cwd=copy).returncode)


if __name__ == "__main__":
    main()
