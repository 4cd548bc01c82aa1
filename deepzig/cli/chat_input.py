"""Reads what the user says: with an editor on a terminal, line by line elsewhere.

Called by `chat`; calls prompt_toolkit, which is imported only for the editor, and asks `chat_commands` what can be
completed. Knows nothing of sessions.
"""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from deepzig.cli.chat_commands import COMMANDS
from deepzig.cli.messages import warn
from deepzig.cli.text_files import MAX_TEXT_BYTES, check_size
from deepzig.cli.user_folders import user_folder
from deepzig.errors import RequestError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT, CONTINUED = "> ", "  "
HISTORY, NOT_KEPT = "chat_history", "what you write is not kept for later chats"


class Input(Protocol):
    """Where messages and commands come from."""

    def read(self) -> str | None:
        """The next message or command; None at the end."""


def has_editor() -> bool:
    """Whether there is a terminal that an editor can be drawn on."""
    return sys.stdin.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class LineInput:
    r"""A line of stdin each; a \ at its end goes on in the next line."""

    def __init__(self) -> None:
        self._stream = sys.stdin.buffer
        self._prompt = PROMPT if sys.stdin.isatty() else ""
        self._number = 0

    def read(self) -> str | None:
        """Raises RequestError for a line that is not UTF-8, click.UsageError for one that is too large."""
        lines: list[str] = []
        click.echo(self._prompt, nl=False, err=True)
        while raw := self._stream.readline(MAX_TEXT_BYTES + 1):
            self._number += 1
            check_size(raw, f"line {self._number} of stdin")
            try:
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise RequestError(f"line {self._number} of stdin is not UTF-8 at byte {error.start}") from error
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        if self._prompt:
            click.echo(err=True)  # the shell's prompt starts on a line of its own
        return "\n".join(lines) if lines else None


class EditorInput:
    """A prompt with history, several lines and completion, drawn on stderr."""

    def __init__(self, on_leave_hint: Callable[[], None]) -> None:
        """on_leave_hint: called for Ctrl-C when there is no text to clear."""
        self._session = _session(on_leave_hint)

    def read(self) -> str | None:
        while True:
            try:
                return self._session.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:  # just when the editor ended and asyncio put Python's own handler back
                continue


def _session(on_leave_hint: Callable[[], None]) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.output.color_depth import ColorDepth
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(sys.stderr, term=os.environ.get("TERM"))
    output.enable_cpr = False  # terminals that do not answer would have to wait, and be warned
    return PromptSession(
        FormattedText([("", "\n"), ("bold", PROMPT)]),
        output=output,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        multiline=True,
        prompt_continuation=CONTINUED,
        key_bindings=_keys(on_leave_hint),
        history=_history(),
        completer=_completer(),
        complete_while_typing=False,
        enable_suspend=True,
    )


def _keys(on_leave_hint: Callable[[], None]) -> "KeyBindings":
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()
    writes = ~is_searching  # in a search of the history, Enter takes what was found and Ctrl-C gives up

    @keys.add("enter", filter=writes)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=writes)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=writes)
    @keys.add("<sigint>")
    def take_back(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(on_leave_hint)

    return keys


def _completer() -> "Completer":
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class CommandCompleter(Completer):
        """Completes names of commands and their arguments."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            name, blank, argument = document.text_before_cursor.partition(" ")
            if not blank:
                for each, command in COMMANDS.items():
                    if name and each.startswith(name):
                        yield Completion(f"{each} " if command.takes else each, -len(name), display_meta=command.help)
            elif name in COMMANDS and COMMANDS[name].takes_file:
                yield from PathCompleter(expanduser=True).get_completions(Document(argument), complete_event)
            elif name in COMMANDS:
                choices = COMMANDS[name].choices
                yield from (Completion(each, -len(argument)) for each in choices if each.startswith(argument))

    return CommandCompleter()


def _history() -> "History":
    """Messages of this and earlier chats; of this one only if they cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = user_folder("XDG_STATE_HOME", ".local/state")
    if folder is None:
        warn(f"{NOT_KEPT}: you have no home folder; XDG_STATE_HOME names another")
        return InMemoryHistory()
    path = folder / HISTORY
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        warn(f"{NOT_KEPT}: {error}")
        return InMemoryHistory()
    return FileHistory(path)


@contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """Within this context Ctrl-C calls `stop`, except while the editor reads; a late one ends nothing."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def without_echo() -> Iterator[None]:
    """Within this context typed text does not appear; the editor reads it later."""
    modes = termios.tcgetattr(sys.stdin)
    try:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, [*modes[:3], modes[3] & ~termios.ECHO, *modes[4:]])
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)
