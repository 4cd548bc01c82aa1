"""Shows a chat: answers on stdout; all else on stderr, dimmed if that is a terminal.

Called by `chat`; calls `word_wrap`, `terminal_text`, and `progress` to format numbers. Knows the events of a session
and what commands say, nothing of models.
"""

import os
import sys
import textwrap
import time
from typing import TextIO

import click

from deepzig.cli.chat_commands import Outcome
from deepzig.cli.chat_session import Events
from deepzig.cli.help import Formatter
from deepzig.cli.messages import is_quiet, note
from deepzig.cli.progress import counted, fitting
from deepzig.cli.terminal_text import harmless
from deepzig.cli.word_wrap import WordWrap
from deepzig.engine.results import Progress
from deepzig.text.answer_format import THINK_CLOSE, THINK_OPEN
from deepzig.text.answer_parser import Content, Reasoning

READING_SHOWN_AFTER_S = 0.5
_ERASE_LINE = "\r\x1b[2K"


class ChatScreen:
    """stdout and stderr; each may be a terminal."""

    def __init__(self, *, hides_reasoning: bool) -> None:
        self._hides_reasoning = hides_reasoning or is_quiet()
        self._has_status = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not is_quiet()
        self._status = ""
        self._text: _GrowingText | None = None

    def remark(self, text: str) -> None:
        """A line beside the conversation; not with -q."""
        note(click.style(_fitted(text), dim=True))

    def reply(self, outcome: Outcome) -> None:
        """Show what a command says."""
        if outcome.rows:
            formatter = Formatter(width=_columns(sys.stderr) - 1)
            formatter.write_dl(outcome.rows)
            click.echo(harmless(formatter.getvalue(), sys.stderr), nl=False, err=True)
        for line in outcome.lines:
            click.echo(_fitted(line), err=True)

    def error(self, message: str) -> None:
        """Show what went wrong, in one line."""
        click.echo(_fitted(f"Error: {' '.join(message.split())}"), err=True)

    def show(self, events: Events) -> None:
        """Show an answer as it comes. Raises what `events` raise, after ending the line."""
        started = time.perf_counter()
        try:
            for event in events:
                if isinstance(event, Progress):
                    self._show_reading(event, time.perf_counter() - started)
                elif isinstance(event, Reasoning) and self._hides_reasoning:
                    self._set_status("thinking…")
                elif isinstance(event, Reasoning):
                    self._write(event.text, _Reasoning)
                elif isinstance(event, Content):
                    self._write(event.text, _Answer)
        finally:
            self._end_text()

    def _show_reading(self, progress: Progress, seconds: float) -> None:
        if seconds >= READING_SHOWN_AFTER_S:
            rate = (progress.prompt_tokens_done - progress.cached_tokens) / seconds
            counts = counted(progress.prompt_tokens_done, progress.prompt_tokens, "tokens", rate)
            self._set_status(fitting(["reading", *counts], _columns(sys.stderr) - 1))

    def _write(self, text: str, kind: "type[_Answer] | type[_Reasoning]") -> None:
        if type(self._text) is not kind:
            self._end_text()
            self._text = kind()
        self._text.write(text)

    def _end_text(self) -> None:
        self._set_status("")
        if self._text is not None:
            self._text.end()
            self._text = None

    def _set_status(self, text: str) -> None:
        """Overwrite the status line; empty: remove it. Only on a terminal."""
        if self._has_status and text != self._status:
            sys.stderr.write(_ERASE_LINE)  # no style, so not for click to leave out
            click.echo(click.style(text, dim=True), nl=False, err=True)
            self._status = text


class _GrowingText:
    """A text on one of the streams; on a terminal its lines are broken between words."""

    def __init__(self, stream: TextIO, *, is_dim: bool) -> None:
        self._stream = stream
        self._is_dim = is_dim
        self._wrap = WordWrap(_columns(stream)) if stream.isatty() else None

    def write(self, text: str) -> None:
        """Add a piece."""
        text = harmless(text, self._stream)
        self._put(self._wrap.push(text) if self._wrap else text)

    def end(self) -> None:
        """Add waiting text, and end the line."""
        self._put((self._wrap.finish() if self._wrap else "") + "\n")

    def _put(self, text: str) -> None:
        if text:  # color: else click would take away what looks like a style, from a pipe too
            text = click.style(text, dim=True) if self._is_dim else text
            click.echo(text, self._stream, nl=False, color=True)


class _Answer(_GrowingText):
    def __init__(self) -> None:
        super().__init__(sys.stdout, is_dim=False)


class _Reasoning(_GrowingText):
    """Thoughts; without styles they stand between their marks."""

    def __init__(self) -> None:
        colour = click.get_current_context().color
        super().__init__(sys.stderr, is_dim=sys.stderr.isatty() if colour is None else colour)
        if not self._is_dim:
            self._put(f"{THINK_OPEN}\n")

    def end(self) -> None:
        super().end()
        self._put("\n" if self._is_dim else f"{THINK_CLOSE}\n\n")


def _fitted(text: str) -> str:
    """A line, broken between words if the terminal is narrower."""
    return textwrap.fill(harmless(text, sys.stderr), _columns(sys.stderr)) if sys.stderr.isatty() else text


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
