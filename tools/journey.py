"""Compares the map of files in README.md with the tree: `python tools/journey.py`, also called by tests/test_docs.py.

The map is the first code block under the heading "Map of files". A line is a path (indented two columns a level,
folders end in /), two or more blanks, and what is there. `name*` stands for all files of a kernel. A folder with lines
below it lists all its files but `__init__.py`; a folder without such lines stands for everything in it.
"""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING = "## Map of files"
SUFFIXES = {".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".js", ".css", ".html", ".svg", ".md", ".toml", ".in", ".json"}
OTHER_NAMES = {"Makefile", "Containerfile", "LICENSE", "run"}
SKIPPED_FOLDERS = {"build", "dist", "__pycache__", "node_modules"}
SKIPPED_FILES = {"_build.json"}


def parse_map(readme: str) -> list[str]:
    """Paths of the map, folders with a trailing slash. Raises ValueError if a line is not as the docstring says."""
    section = readme.partition(f"{HEADING}\n")[2]
    block = section.partition("```")[2].partition("\n")[2].partition("```")[0]
    if not block:
        raise ValueError(f"README.md has no code block under {HEADING!r}")
    paths: list[str] = []
    parents: list[str] = []
    for line in filter(None, block.splitlines()):
        match = re.fullmatch(r"((?:  )*)(\S+)(?: {2,}\S.*)?", line)
        if match is None or len(match[1]) // 2 > len(parents):
            raise ValueError(f"README.md: cannot read this line of the map: {line!r}")
        parents = parents[: len(match[1]) // 2]
        path = "".join(parents) + match[2]
        paths.append(path)
        if path.endswith("/"):
            parents.append(match[2])
    return paths


def tree(root: Path) -> list[str]:
    """Files that the map must account for."""
    found = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        hidden = any((name.startswith(".") and name != ".ci") or name.endswith(".egg-info") for name in folders)
        wanted = (path.suffix in SUFFIXES or path.name in OTHER_NAMES) and path.name not in SKIPPED_FILES
        if wanted and not hidden and SKIPPED_FOLDERS.isdisjoint(folders) and path.is_file():
            found.append(relative.as_posix())
    return sorted(found)


def differences(paths: list[str], files: list[str]) -> list[str]:
    """One line for each path of the map that matches nothing, and for each file that no path accounts for."""
    expanded = {parent for path in paths for parent in _parents(path)}
    patterns = [path + "*" if path.endswith("/") and path not in expanded else path for path in paths]
    listed = [pattern for pattern in patterns if not pattern.endswith("/")]
    problems = [
        f"README.md lists {path}, which does not exist"
        for path, pattern in zip(paths, patterns, strict=True)
        if not any(fnmatch(file, pattern) or file.startswith(path if path.endswith("/") else "\0") for file in files)
    ]
    return problems + [
        f"README.md does not list {file}"
        for file in files
        if not file.endswith("__init__.py") and not any(fnmatch(file, pattern) for pattern in listed)
    ]


def _parents(path: str) -> list[str]:
    parts = path.rstrip("/").split("/")
    return ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]


def main() -> int:
    problems = differences(parse_map((ROOT / "README.md").read_text(encoding="utf-8")), tree(ROOT))
    print("\n".join(problems) or "the map of files in README.md fits the tree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
