"""A wheel of the tree as it is, from its source distribution. Called by install_matrix.py, single_file.py and,
for what is not copied, readme_in_empty_venv.py.

The tree is copied first: what an earlier build left in it must not get into the wheel.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_build.json")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Runs a command away from the tree and returns its stdout; shows everything if it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def copy_tree(work: Path) -> Path:
    return Path(shutil.copytree(ROOT, work / "tree", ignore=NOT_COPIED))


def make_wheel(copy: Path, work: Path) -> Path:
    """A wheel built from the source distribution of the copied tree, so that MANIFEST.in has its say."""
    build_sdist = "import setuptools.build_meta as backend; backend.build_sdist('dist')"
    run(sys.executable, "-c", build_sdist, cwd=copy)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", work, sdist, cwd=work)
    (wheel,) = work.glob("*.whl")
    return wheel
