"""The documents say what is there: map of files, commands, snippets, environment variables, changelog."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import deepzig
from deepzig._kernels import REGISTRY
from deepzig._kernels._isa import ISA_NAMES
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.sizes import converted_size, declared_size
from deepzig.cli import COMMANDS
from deepzig.config import ModelConfig
from deepzig.engine.memory_need import cache_bytes_per_token

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
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    table = page.partition("## All variables\n")[2].partition("\n## ")[0]
    sources = [ROOT / "setup.py", *(ROOT / "deepzig").rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    named = {name for text in texts for name in re.findall(r"\bDEEPZIG_[A-Z_]*[A-Z]", text)}
    assert "DEEPZIG_ISA" in named
    assert [name for name in sorted(named) if f"`{name}`" not in table] == []


def test_every_code_of_an_error_is_told() -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "websocket.md")]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "deepzig/server").glob("*.py")]
    codes = {code for text in sources for code in re.findall(r'code="(\w+)"', text)}
    assert "invalid_value" in codes
    unread = {"client_disconnected"}  # by then nobody reads
    assert [code for code in sorted(codes - unread) if not any(f"`{code}`" in page for page in pages)] == []


def test_cli_reference_is_what_the_help_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("threads = 3\n[serve]\nport = 8081\n", encoding="utf-8")
    for variable, value in {"COLUMNS": "40", "DEEPZIG_CONFIG": str(tmp_path / "config.toml"), "FORCE_COLOR": "1",
                            "DEEPZIG_THREADS": "2"}.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    page = runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))["page"]()
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page, "docs/cli.md is not what --help says; run `make docs` and commit what it writes"
    assert all(f"\n## deepzig {name}\n" in written for name in COMMANDS)


def test_public_names_are_there() -> None:
    assert all(getattr(deepzig, name) is not None for name in deepzig.__all__)
    assert dir(deepzig) == sorted(deepzig.__all__)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "python_reference.py"))


def test_python_reference_is_what_the_docstrings_say(reference: dict[str, Any]) -> None:
    assert (ROOT / "docs/python.md").read_text(encoding="utf-8") == reference["render"](), "run make docs"


def test_python_reference_has_every_public_name(reference: dict[str, Any]) -> None:
    assert {*reference["PUBLIC"], "errors", "__version__"} == set(deepzig.__all__)


def test_everything_public_is_explained(reference: dict[str, Any]) -> None:
    page = reference["render"]()
    assert re.findall(r"^\|.*\|  \|$", page, re.MULTILINE) == []  # fields
    assert re.findall(r"^```text\n[^`]*```\n\n#|\): $", page, re.MULTILINE) == []  # methods and properties
    arrays = re.findall(r"-> np.ndarray\n```\n\n(.*)", page) + re.findall(
        r"^.*`(?:.*\W)?np.ndarray.*`.*$", page, re.MULTILINE
    )
    assert len(arrays) > 8
    assert [text for text in arrays if not re.search(r"\b(f32|i32|i64|bool) \(", text)] == []


def test_the_page_on_kernels_has_all_of_them() -> None:
    page = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    section = page.partition("## The kernels\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == set(REGISTRY)
    assert f"{len(REGISTRY)} kernels" in page
    sets = page.partition("## Instruction sets\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", sets, re.MULTILINE) == list(ISA_NAMES)
    compiled = {
        row[0]: set(re.findall(r"`(\w+)`", row[1])) for row in re.findall(r"^\| `(\w+)` .*\| (.*) \|$", sets, re.M)
    }
    for name, named in compiled.items():
        actual = {stem for stem, kernel in REGISTRY.items() if name in kernel.isas}
        assert actual == ((set(REGISTRY) - named) if name in ("plain", "avx2", "avx512") else named), name


def messages_in(source: str) -> Iterator[re.Pattern[str]]:
    """The texts of a module, with anything in the place of what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
            if sum(len(part) for part in parts if part != ".*") > 12:
                yield re.compile("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.compile(re.escape(node.value))


def test_messages_that_troubleshooting_explains_are_those_of_the_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    explained = [a or b for a, b in re.findall(r"^- (?:``(.*) ``|`(.*)`)\\$", page, re.MULTILINE)]
    sources = [path.read_text(encoding="utf-8") for path in [*(ROOT / "deepzig").rglob("*.py"), ROOT / "setup.py"]]
    patterns = [pattern for source in sources for pattern in messages_in(source)]
    assert len(explained) > 15
    assert [message for message in explained if not any(p.fullmatch(message) for p in patterns)] == []


def test_computed_figures_of_v2_lite() -> None:
    page = (ROOT / "docs/v2-lite.md").read_text(encoding="utf-8")
    config = ModelConfig.from_directory(ROOT / "tests/published/DeepSeek-V2-Lite")
    assert f"cache {cache_bytes_per_token(config) / 1000:.0f} kB for each token" in page
    sizes = {
        "bf16, as published": declared_size(config),
        "int8": converted_size(config, Recipe("int8")),
        "int4 mix": converted_size(config, Recipe("int4")),
    }
    for label, size in sizes.items():
        read = size.bytes_per_token
        assert f"| {label} | {size.nbytes / 1e9:.1f} | {read / 1e9:.2f} |" in page
        assert f"| {label} | {' | '.join(f'{speed * 1e9 / read:.0f}' for speed in (25, 50, 80))} |" in page


def test_changelog_and_package_agree_on_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[0] == deepzig.__version__
    assert f'version = "{deepzig.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


ANCHORED = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(document: Path) -> str:
    """A document without its code."""
    return re.sub(
        r"^```.*?^```$|^    .*?$|`[^`\n]+`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings: small letters, words joined by hyphens, no punctuation."""
    fenceless = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", fenceless, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    broken = []
    for link, anchor in ANCHORED.findall(prose(document)):
        target = document.parent / link if link else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{link}#{anchor}" if anchor else link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# The `b` page, in short\n```\n# no heading\n```\n", encoding="utf-8")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#the-b-page-in-short) [b](c.md) [c](b.md#no-heading) [d](#nowhere) `[e](f.md)`", "utf-8")
    assert broken_links(page) == ["c.md", "b.md#no-heading", "#nowhere"]


def test_sizes_of_published_models_are_those_that_info_computes() -> None:
    table = runpy.run_path(str(ROOT / "tools" / "model_sizes.py"))["table"]()
    written = (ROOT / "docs" / "big-models.md").read_text(encoding="utf-8")
    assert table in written, "put what `python tools/model_sizes.py` prints into docs/big-models.md"


def test_pictures_are_well_formed_and_say_what_they_show() -> None:
    for path in (ROOT / "docs").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.findtext("{http://www.w3.org/2000/svg}title") and root.findtext("{http://www.w3.org/2000/svg}desc")
        assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")


def test_every_page_is_in_the_index() -> None:
    linked = {link for link, _ in ANCHORED.findall(README)}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked
