"""Imports go downwards only: a package may import what stands below it in LEVELS, and itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "deepzig"

LEVELS = (
    "errors", "small_files", "cgroup", "threads", "memory", "_kernels", "config", "checkpoint", "model", "text",
    "engine", "evaluate", "distributed", "server", "llm_plugin", "cli",
)  # fmt: skip
FACADE = "deepzig"  # deepzig/__init__.py offers what lies below it to users; no module of the package imports it
_CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+(deepzig[\w.]*)\s+c?import|c?import\s+(deepzig[\w.]*))", re.MULTILINE)


def sources() -> list[Path]:
    return sorted(path for pattern in ("*.py", "*.pyi", "*.pyx", "*.pxd") for path in PACKAGE.rglob(pattern))


def imported(path: Path, text: str) -> Iterator[str]:
    """Dotted names of deepzig that a file imports, at the top and within functions."""
    if path.suffix in (".pyx", ".pxd"):
        yield from (before or after for before, after in _CYTHON_IMPORT.findall(text))
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            yield from (".".join((*package, node.module or alias.name)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            is_facade = node.module == FACADE
            yield from (f"{FACADE}.{alias.name}" if is_facade else node.module or "" for alias in node.names)


def level_name(dotted: str) -> str | None:
    """The row of LEVELS that a dotted name belongs to, FACADE for what deepzig/__init__.py offers, None for others."""
    parts = dotted.split(".")
    if parts[0] != "deepzig":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVELS else FACADE


def offending_edges(path: Path, text: str) -> list[str]:
    """The imports of a file that do not go downwards, as 'file: importer -> imported'."""
    inside = path.relative_to(PACKAGE).parts
    importer = inside[0].removesuffix(".py")
    if importer in ("__init__", "__main__"):  # facade and entry point
        return []
    assert importer in LEVELS, f"{path.relative_to(ROOT)}: {importer} has no place in LEVELS"
    edges = []
    for dotted in imported(path, text):
        target = level_name(dotted)
        if target is None or target == importer:
            continue
        if target == FACADE or LEVELS.index(target) >= LEVELS.index(importer):
            edges.append(f"{path.relative_to(ROOT)}: {importer} -> {dotted}")
    return edges


def test_imports_go_downwards() -> None:
    edges = [edge for path in sources() for edge in offending_edges(path, path.read_text(encoding="utf-8"))]
    assert not edges, "\n".join(edges)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("model/mlp.py", "import deepzig.engine.llm", "deepzig/model/mlp.py: model -> deepzig.engine.llm"),
        ("model/mlp.py", "def f():\n    from deepzig.text import load_tokenizer", "model -> deepzig.text"),
        ("model/mlp.py", "from ..engine import llm", "model -> deepzig.engine"),
        ("model/mlp.py", "from .. import cli", "model -> deepzig.cli"),
        ("cli/generate.py", "import deepzig", "cli -> deepzig"),
        ("engine/llm.py", "from deepzig import load", "engine -> deepzig.load"),
        ("_kernels/rope_cython.pyx", "from deepzig.model.rotary cimport f", "_kernels -> deepzig.model.rotary"),
        ("_kernels/_pick.py", "from deepzig.config import ModelConfig", "_kernels -> deepzig.config"),
    ],
)
def test_names_the_offending_edge(file: str, text: str, expected: str) -> None:
    (edge,) = offending_edges(PACKAGE / file, text)
    assert edge.endswith(expected)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model/mlp.py", "from deepzig import _kernels\nfrom . import norm\nfrom .norm import RMSNorm\nimport numpy"),
        ("cli/generate.py", "from deepzig.engine.loading import load\nfrom deepzig import _kernels"),
        ("engine/llm.py", "from deepzig.model import DeepseekModel"),
    ],
)
def test_allows_downward_imports(file: str, text: str) -> None:
    assert offending_edges(PACKAGE / file, text) == []
