"""File docstrings that begin a sentence with "Called by" name modules that do import the file."""

import ast
import re
from collections.abc import Iterator

from tests.test_import_levels import PACKAGE, ROOT

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
_CLAUSE = re.compile(r"(?:^|\. |\n)Called by (.*?)(?:;|\.\s|\.?$)", re.DOTALL)


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def callers(docstring: str) -> Iterator[str]:
    """`name`, and `deepzig name` of a command, but nothing in parentheses."""
    for clause in _CLAUSE.findall(re.sub(r"\([^)]*\)", "", docstring)):
        yield from re.findall(r"`(?:deepzig )?([\w.]+)`", clause)


def test_callers_import_what_they_are_said_to_call() -> None:
    imported = {name: [f"{each}." for each in imports(tree)] for name, tree in TREES.items()}
    wrong = []
    for name, tree in TREES.items():
        file = name.removesuffix(".__init__") if "._kernels." not in name else "deepzig._kernels"  # kernels are picked
        for caller in callers(ast.get_docstring(tree) or ""):
            places = tuple(f"{place}.{caller}." for place in (name.rpartition(".")[0], "deepzig", "deepzig.cli"))
            importing = [other for other in TREES if f"{other}.".startswith(places)]
            if not any(each.startswith(f"{file}.") for other in importing for each in imported[other]):
                wrong.append(f"{name} is not imported by {caller}")
    assert not wrong, "\n".join(wrong)
