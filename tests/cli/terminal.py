"""A terminal as a person sees it: a program in a pty, and the screen that its output makes; a stream that is one."""

import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import pexpect
import pyte

NOT_INHERITED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")  # the terminal's own size counts
PATIENCE_S = 60  # with a screen that does not come; nothing is measured
_EDITOR_ENDS = "\x1b[?2004l"  # it no longer wants to be told what is pasted
UP, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R = "\x1b[A", "\x1b\r", "\x03", "\x04", "\x12"


class TerminalStream(io.StringIO):
    """Keeps what is drawn on it. Its width is not known."""

    def isatty(self) -> bool:
        return True


class Terminal:
    """deepzig with `arguments` on a terminal of so many columns. Leaving the context ends the program."""

    def __init__(
        self, *arguments: str, columns: int = 80, rows: int = 50, env: Mapping[str, str] | None = None
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        self._process = pexpect.spawn(
            sys.executable,
            ["-m", "deepzig", *arguments],
            dimensions=(rows, columns),
            env={**inherited, "TERM": "xterm-256color", **(env or {})},
            encoding="utf-8",
        )
        self.raw = ""  # all that came
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close(force=True)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without the blanks at the ends of lines and the empty lines at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def send(self, keys: str) -> None:
        """Press keys."""
        self._process.send(keys)

    def kill(self, number: int) -> None:
        """Send a signal."""
        self._process.kill(number)

    def enter(self, line: str) -> None:
        """Type a line when there is a prompt for it, press Enter, and see it taken."""
        self.wait_for_prompt()
        n_taken = self.raw.count(_EDITOR_ENDS)
        self.send(f"{line}\r")
        self.wait(lambda: self.raw.count(_EDITOR_ENDS) > n_taken)

    def wait_for_prompt(self) -> None:
        """An empty prompt in the last line."""
        self.wait(lambda: self.lines[-1] == ">")

    def wait_for(self, *texts: str) -> None:
        """All of them stand on the screen, wherever lines are broken."""
        self.wait(lambda: all(" ".join(text.split()) in " ".join(self.text.split()) for text in texts))

    def wait(self, is_there: Callable[[], bool]) -> None:
        """Until the screen is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_there():
            assert self._read() and time.monotonic() < deadline, self.text

    def exit_code(self) -> int | None:
        """When the program has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self.text
        self._process.close()
        code: int | None = self._process.exitstatus
        return code

    def _read(self) -> bool:
        """Show what has come. False: the program has ended."""
        try:
            came = self._process.read_nonblocking(4096, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += came
        self._stream.feed(came)
        return True
