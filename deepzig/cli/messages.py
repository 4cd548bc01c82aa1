"""What appears on stderr apart from errors: notes of the commands, warnings, log lines; -q and -v choose how much.

Called by the commands (`note`, `warn`), by `command` for -q and -v, by `progress`, and by the command line as a whole,
which shows logs and warnings of the packages below. All go through levels of `logging`, since notes come from other
threads, too. Knows no command.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

NOTE = (logging.INFO + logging.WARNING) // 2
PREFIXES = {logging.WARNING: "Warning: ", logging.ERROR: "Error: "}

_package = logging.getLogger("deepzig")
_log = logging.getLogger("deepzig.cli")


def note(message: str) -> None:
    """Tell people what a command does or has done, unless -q was given."""
    _log.log(NOTE, "%s", message)


def warn(message: str) -> None:
    """Tell people that something may not be as they expect, unless -q was given."""
    _log.warning("%s", message)


def is_quiet() -> bool:
    """Whether only errors are wanted."""
    return not _log.isEnabledFor(logging.WARNING)


def be_quiet() -> None:
    """Show errors only, for other packages too."""
    _package.setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)


def be_verbose() -> None:
    """Show all that deepzig logs: what is loaded, which kernels run, each request."""
    _package.setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.WARNING)


class _Lines(logging.Handler):
    """Writes each record as a line to the current stderr. If that cannot be written, work goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(PREFIXES.get(record.levelno, "") + self.format(record), err=True)
        except OSError:
            self.handleError(record)


@contextmanager
def on_stderr() -> Iterator[None]:
    """Within this context messages and warnings are shown, the latter without the source line that raised them."""
    root, handler = logging.getLogger(), _Lines()
    levels = {logger: logger.level for logger in (root, _package)}
    root.addHandler(handler)
    _package.setLevel(NOTE)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: warn(str(message))
            yield
    finally:
        root.removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)
