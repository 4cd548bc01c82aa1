"""The documents say what is there: map of files, commands, snippets, environment variables, changelog."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import deepzig
from deepzig.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def journey() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "journey.py"))


def test_map_of_files_fits_the_tree(journey: dict[str, Any]) -> None:
    problems = journey["differences"](journey["parse_map"](README), journey["tree"](ROOT))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("listed", "files", "problem"),
    [
        ("a.py  x\n", ["a.py", "b.py"], "does not list b.py"),
        ("a.py  x\nb.py  x\n", ["a.py"], "lists b.py"),
        ("p/\n  a.py  x\n", ["p/a.py", "p/b.py"], "does not list p/b.py"),
        ("p/  all of it\n  q/\n    a.py  x\n", ["p/q/a.py", "p/b.py"], "does not list p/b.py"),
        ("p/\n  k*  x\n", ["p/a.py", "p/k.py"], "does not list p/a.py"),
    ],
)
def test_a_difference_is_named(journey: dict[str, Any], listed: str, files: list[str], problem: str) -> None:
    paths = journey["parse_map"](f"## Map of files\n```\n{listed}```\n")
    (found,) = journey["differences"](paths, files)
    assert problem in found


def test_folders_stars_and_package_files_are_accounted_for(journey: dict[str, Any]) -> None:
    paths = journey["parse_map"]("## Map of files\n```\np/\n  k*  kernel\n  q/  all of it\n```\n")
    files = ["p/__init__.py", "p/k.py", "p/k_numba.py", "p/q/a.py", "p/q/r/b.py"]
    assert journey["differences"](paths, files) == []


def test_every_variable_is_in_the_table() -> None:
    table = README.partition("## Environment variables\n")[2].partition("\n## ")[0]
    sources = [ROOT / "setup.py", *(ROOT / "deepzig").rglob("*.py")]
    named = {name for path in sources for name in re.findall(r"DEEPZIG_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))}
    assert "DEEPZIG_ISA" in named
    assert [name for name in sorted(named) if f"`{name}`" not in table] == []


def commands_of(document: Path) -> list[str]:
    """Lines of a document's code that call deepzig."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith("    deepzig ") or line.startswith("$ deepzig ")]


@pytest.mark.parametrize("line", [line for document in DOCUMENTS for line in commands_of(document)])
def test_commands_in_documents_exist(line: str) -> None:
    _, command, *arguments = shlex.split(line.removeprefix("$ "), comments=True)
    assert command in COMMANDS
    group_context = main.make_context("deepzig", [command], resilient_parsing=True)
    parsed = main.get_command(group_context, command)
    assert parsed is not None
    known = {name for parameter in parsed.params for name in parameter.opts}
    assert {argument for argument in arguments if re.fullmatch(r"--?[a-z][\w-]*", argument)} <= known


README_COMMANDS = commands_of(ROOT / "README.md")


@pytest.mark.parametrize("line", [line for line in README_COMMANDS if "-m " not in line and "./" not in line])
def test_commands_of_the_readme_run_on_the_bundled_model(line: str) -> None:
    result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


def test_python_snippet_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    result = names["result"]
    assert result.text and capsys.readouterr().out.count(result.text) == 2
    assert names["logits"].shape == (3, names["llm"].config.vocab_size)


def test_public_names_are_there() -> None:
    assert all(getattr(deepzig, name) is not None for name in deepzig.__all__)


def test_changelog_and_package_agree_on_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[0] == deepzig.__version__
    assert f'version = "{deepzig.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
