"""What is shown of an answer in the making, on a terminal and elsewhere."""

import io
import sys

import pyte
import pytest

from deepzig.cli import chat_output
from deepzig.cli.chat_commands import Outcome
from deepzig.cli.chat_output import ChatScreen
from deepzig.cli.chat_session import Event, Events
from deepzig.engine.results import Progress
from deepzig.errors import NonFiniteLogitsError
from deepzig.text.answer_parser import Content
from tests.cli.terminal import TerminalStream


def events(*given: Event, fails: bool = False) -> Events:
    yield from given
    if fails:
        raise NonFiniteLogitsError("NaN")


def on_screen(drawn: str) -> list[str]:
    screen = pyte.Screen(80, 10)
    pyte.Stream(screen).feed(drawn.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display if line.strip()]


def one_terminal(monkeypatch: pytest.MonkeyPatch) -> TerminalStream:
    """Make stdout and stderr a terminal, and have progress shown at once."""
    terminal = TerminalStream()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(chat_output, "READING_SHOWN_AFTER_S", 0.0)
    return terminal


def test_how_far_the_prompt_is_gives_way_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = one_terminal(monkeypatch)
    screen = ChatScreen(hides_reasoning=False)
    screen.show(events(Progress(0, 2048, 512, 256)))
    (status,) = on_screen(terminal.getvalue().rpartition("\r")[0])
    assert status.startswith("reading 512/2048 tokens ") and status.endswith("tokens/s")
    assert on_screen(terminal.getvalue()) == []
    screen.show(events(Progress(0, 2048, 1024, 256), Content("It"), Content(" is.")))
    assert on_screen(terminal.getvalue()) == ["It is."]


def test_a_line_that_was_begun_is_ended_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = one_terminal(monkeypatch)
    screen = ChatScreen(hides_reasoning=False)
    with pytest.raises(NonFiniteLogitsError):
        screen.show(events(Content("It is"), fails=True))
    screen.error("NaN,\nso there")
    assert on_screen(terminal.getvalue()) == ["It is", "Error: NaN, so there"]


def test_a_model_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = one_terminal(monkeypatch)
    ChatScreen(hides_reasoning=False).show(events(Content("a\x1b[2J\x07b\r\nc\td\x9b")))
    assert terminal.getvalue() == "a\ufffd[2J\ufffdb\nc\td\ufffd\n"


def test_a_saved_conversation_cannot_either(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = one_terminal(monkeypatch)
    ChatScreen(hides_reasoning=False).reply(Outcome(["Took back: \x1b]0;title\x07"], [("stop", '"\x9b"')]))
    assert on_screen(terminal.getvalue()) == ['stop  "\ufffd"', "Took back: \ufffd]0;title\ufffd"]


def test_elsewhere_every_character_is_as_the_model_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(chat_output, "READING_SHOWN_AFTER_S", 0.0)
    text = "a\x1b[2J\r\n" + "word " * 40
    ChatScreen(hides_reasoning=False).show(events(Progress(0, 9, 3, 0), Content(text)))
    assert (stdout.getvalue(), stderr.getvalue()) == (text + "\n", "")
