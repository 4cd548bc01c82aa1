"""Tables: Markdown, CSV, and what a terminal of any width shows."""

import io
import sys

import pytest
from rich.text import Text

from deepzig.cli.tables import Table, labelled
from tests.cli.terminal import TerminalStream

TABLE = Table("", ["test", "tok/s", "±", "note"], [["pp512", "12.50", "", "slow"], ["tg64 @4096", "3.00", "", ""]])


def printed(table: Table, columns: int, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None = None) -> str:
    stream = stream or TerminalStream()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", stream)
        table.print()
    return "\n".join(line.rstrip() for line in Text.from_ansi(stream.getvalue()).plain.splitlines())


def test_wide_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(TABLE, 25, monkeypatch) == ("test        tok/s  note\npp512       12.50  slow\ntg64 @4096   3.00")


def test_too_narrow_makes_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(TABLE, 22, monkeypatch) == "pp512\n  tok/s 12.50\n  note  slow\ntg64 @4096\n  tok/s 3.00"


def test_no_line_is_wrapped_outside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Table("", ["name", "value"], [["n" * 200, "v" * 200]])
    assert len(printed(long, 20, monkeypatch, io.StringIO()).splitlines()) == 2


def test_a_title_stands_above(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("Bounds", ["", "x"], [["a", "1"]])
    assert printed(table, 80, monkeypatch).splitlines()[0] == "Bounds"
    assert table.markdown().startswith("**Bounds**\n\n| ")


def test_a_name_from_elsewhere_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labelled("model", "a\x1b[2Jb", 6) == "model  a\x1b[2Jb"
    monkeypatch.setattr(sys, "stdout", TerminalStream())
    assert labelled("model", "a\x1b[2Jb", 6) == "model  a\ufffd[2Jb"


@pytest.mark.parametrize("columns", [10, 80])
def test_names_from_elsewhere_are_shown_as_they_are(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("", ["", "x"], [["[/red]", ":x:"], ["[bold]|\n\x1b[2J", "1"]])
    assert {"[/red]", ":x:", "[bold]|", "\ufffd[2J", "1"} <= set(printed(table, columns, monkeypatch).split())
    assert table.markdown().splitlines()[-1] == "| [bold]\\| \x1b[2J | 1 |"


def test_markdown_and_csv() -> None:
    assert TABLE.markdown().splitlines() == [
        "| test | tok/s | note |",
        "| --- | ---: | ---: |",
        "| pp512 | 12.50 | slow |",
        "| tg64 @4096 | 3.00 |  |",
    ]
    assert Table("", ["a", "b"], [['x,"y"', "1"]]).csv() == 'a,b\n"x,""y""",1'
