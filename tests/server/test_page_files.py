"""The page's files: small, self-contained, in the wheel, and without the calls that would turn text into markup."""

import re
from pathlib import Path

import pytest
from setuptools.dist import Distribution

from deepzig.server.app import CSP, STATIC

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]


def test_all_files_together_are_under_150_kb() -> None:
    assert {path.suffix for path in FILES} == {".html", ".css", ".js", ".svg"}
    assert sum(path.stat().st_size for path in FILES) < 150 * 1024


def test_a_wheel_has_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    distribution.script_name = "setup.py"
    build = distribution.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    build.run()
    assert {path.name for path in FILES} == {path.name for path in (tmp_path / "deepzig/server/static").iterdir()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"https?://[\w.-]+\.\w+", text.replace("http://www.w3.org/", "")) == []
    assert not re.search(r"\burl\(", text) and "@import" not in text
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"|from "\./([^"]+)"', text):
        assert (STATIC / "".join(name).removeprefix("static/")).is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|ContextualFragment|\beval\(|new Function"
    )
    assert re.findall(forbidden, text) == []
    assert re.match(r"/\*\*|// ", text), "a file begins with what it is for"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert "unsafe" not in CSP and "http" not in CSP and "default-src 'none'" in CSP
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\son\w+=|\sstyle=", index)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", index))
