"""Progress: what a terminal of any width shows, and the plain lines elsewhere."""

import io
import sys

import pytest
from rich.cells import cell_len
from rich.text import Text

from deepzig.cli import progress
from deepzig.cli.messages import be_quiet, on_stderr
from deepzig.cli.progress import amount, byte_progress, clock, counted, fitting, plural
from tests.cli.terminal import TerminalStream

TOTAL = 10_600_000  # bytes: small enough that no speed of a test needs an exponent
DETAILS = ("1150 of 1663 tensors", "model-00001-of-00002.safetensors")


def shown_on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is drawn for work of 10.6 MB, a third done, in lines; without the codes of the terminal."""
    terminal = TerminalStream()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr(progress, "DRAW_EVERY_S", 0.0)
        patch.setattr(sys, "stderr", terminal)
        with byte_progress("to int8") as update:
            update(0, TOTAL)
            update(TOTAL // 6, TOTAL, *DETAILS)
            update(TOTAL // 3, TOTAL, *DETAILS)
    return Text.from_ansi(terminal.getvalue().replace("\x1b[2K", "")).plain.splitlines()


@pytest.mark.parametrize(
    ("columns", "there", "left_out"),
    [
        (140, ["3.5/10.6 MB", "B/s", *DETAILS], []),
        (80, ["3.5/10.6 MB", "B/s", DETAILS[0]], [DETAILS[1]]),
        (40, ["3.5/10.6 MB", " left"], list(DETAILS)),
    ],
)
def test_a_terminal_shows_what_fits(
    columns: int, there: list[str], left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in shown_on_a_terminal(columns, monkeypatch) if "to int8" in line]
    assert lines and max(map(cell_len, lines)) <= columns
    assert "━" in lines[-1] and "…" not in lines[-1]
    assert all(part in lines[-1] for part in there)
    assert not any(part in lines[-1] for part in left_out)


def test_forced_colours_draw_no_bar_outside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", file)
    with on_stderr(), byte_progress("to int8") as update:
        update(0, TOTAL)
        update(TOTAL, TOTAL)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("to int8: 100 %, 10.6/10.6 MB")


@pytest.mark.parametrize("stream", [io.StringIO, TerminalStream])
def test_quiet_shows_no_progress(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream()
    monkeypatch.setattr(sys, "stderr", file)
    with on_stderr():
        be_quiet()
        with byte_progress("to int8") as update:
            update(0, TOTAL)
            update(TOTAL, TOTAL)
    assert file.getvalue() == ""


def test_what_matters_most_comes_first() -> None:
    parts = [*counted(7_360_000, TOTAL, "B", 549e3), *DETAILS]
    assert parts[:3] == ["7.4/10.6 MB", "0:06 left", "549 kB/s"]
    assert fitting(parts, 30) == "7.4/10.6 MB 0:06 left 549 kB/s"
    assert fitting(parts, 29) == "7.4/10.6 MB 0:06 left"
    assert fitting(parts, 0) == ""
    assert fitting(parts, 200) == " ".join(parts)


def test_no_time_is_left_where_none_is_known() -> None:
    assert counted(0, 100, "tokens", 0) == ["0/100 tokens", "0 tokens/s"]
    assert counted(100, 100, "tokens", 5) == ["100/100 tokens", "5 tokens/s"]


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "0:01"), (65, "1:05"), (3599.5, "1:00:00"), (7265, "2:01:05")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_plural() -> None:
    assert [plural(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [(5, 900, "5.0/900 B"), (290_000_000, 1_060_000_000, "0.29/1.06 GB"), (7 * 10**10, 7 * 10**11, "70.0/700 GB")],
)
def test_amount(done: int, total: int, shown: str) -> None:
    assert amount(done, total, "B") == shown
