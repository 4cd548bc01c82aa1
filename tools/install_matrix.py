"""Installs deepzig into empty environments and lets it tell a story: `make test-install`.

Three ways: a wheel that was built from the source distribution (so that MANIFEST.in is tested too), a plain
`pip install .`, and the same without a compiler, where Numba has to do.
"""

import json
import shutil
import tempfile
import venv
from pathlib import Path

from tools.clean_wheel import copy_tree, make_wheel, run

GENERATE = ("generate", "Once upon a time", "--max-tokens", "20", "--json")


def install(what: Path, name: str, work: Path, **environment: str) -> Path:
    """A new virtual environment with `what` installed; returns its bin folder."""
    home = work / name
    venv.create(home, with_pip=True)
    run(home / "bin/pip", "install", what, cwd=work, **environment)
    return home / "bin"


def check(bin_folder: Path, work: Path, is_compiled: bool) -> str:
    """Generates, and compares what the kernels say of themselves. Returns the text."""
    result = json.loads(run(bin_folder / "deepzig", *GENERATE, "--temperature", "0", cwd=work))
    assert len(result["token_ids"]) == 20, result
    shown = json.loads(run(bin_folder / "deepzig", "kernels", "--json", cwd=work))
    assert (shown["problem"] is None) == is_compiled, shown["problem"]
    assert any(row["runs"].startswith("cython/") for row in shown["kernels"]) == is_compiled, shown["kernels"]
    assert is_compiled or "no compiled kernels" in run(bin_folder / "deepzig", "info", cwd=work)
    return str(result["text"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy = copy_tree(work)
        no_compiler = {"CC": "/bin/false", "CXX": "/bin/false"}
        print("a wheel, into an empty environment")
        from_wheel = check(install(make_wheel(copy, work), "from-wheel", work), work, is_compiled=True)
        for leftover in (copy / "build", copy / "dist"):
            shutil.rmtree(leftover)
        print("pip install . without a compiler")
        without = check(install(copy, "no-compiler", work, **no_compiler), work, is_compiled=False)
        assert without == from_wheel, f"other text without compiled kernels: {without!r}, {from_wheel!r}"
        shutil.rmtree(copy / "build", ignore_errors=True)
        print("pip install . with one")
        assert check(install(copy, "compiler", work), work, is_compiled=True) == from_wheel
        print(f"all three tell: {from_wheel!r}")


if __name__ == "__main__":
    main()
