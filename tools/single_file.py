"""Makes dist/deepzig.pyz, one executable file with all that deepzig needs but Python: `make zipapp`.

pex packs a wheel of the tree and everything that it depends on. Says at the end where the file runs. Fails if a kernel
could not be compiled: the file would be slower, and nobody would know why.
"""

import json
import platform
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from tools.clean_wheel import ROOT, copy_tree, make_wheel, run

TARGET = ROOT / "dist" / "deepzig.pyz"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_GLIBC = re.compile(rb"\bGLIBC_2\.(\d+)\b")


def left_out(wheel: Path) -> dict[str, str]:
    """Kernels that are not in the wheel, with the reasons."""
    with zipfile.ZipFile(wheel) as archive:
        report = json.loads(archive.read("deepzig/_kernels/_build.json"))
    return {"all": report["problem"]} if report["problem"] else dict(report["not_built"])


def oldest_glibc(archive: Path) -> str | None:
    """The oldest glibc that has what the archive's libraries ask for; None where they ask for none."""
    with zipfile.ZipFile(archive) as opened:
        libraries = [opened.read(name) for name in opened.namelist() if re.search(r"\.so(\.\d+)*$", name)]
    minors = [int(minor) for library in libraries for minor in _GLIBC.findall(library)]
    return f"2.{max(minors)}" if minors else None


def pack(wheel: Path, target: Path, work: Path) -> None:
    """With --venv and --sh-boot every start but the first is that of a virtual environment."""
    target.parent.mkdir(exist_ok=True)
    options = ("--venv", "--sh-boot", "--no-build", "--interpreter-constraint", f"CPython=={PYTHON}.*")
    run(sys.executable, "-m", "pex", wheel, "--console-script", "deepzig", *options, "--output-file", target, cwd=work)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = make_wheel(copy_tree(work), work)
        if missing := left_out(wheel):
            raise SystemExit(f"kernels that could not be compiled: {missing}; mend the compiler and try again")
        pack(wheel, TARGET, work)
    glibc = oldest_glibc(TARGET)
    system = f"{platform.system()} {platform.machine()}" + (f" with glibc {glibc} or newer" if glibc else "")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1e6:.0f} MB, for {system} and CPython {PYTHON}")


if __name__ == "__main__":
    main()
