"""Text that a user gives, as a file or as bytes. Called by the commands."""

from pathlib import Path

import click


def read_text(path: Path) -> str:
    """A file whose line breaks of any kind become "\\n". Raises click.UsageError if it is not UTF-8."""
    return decode(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def decode(raw: bytes, origin: str) -> str:
    """The text of UTF-8 bytes. Raises click.UsageError that names `origin`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{origin} is not UTF-8 at byte {error.start}; convert it first") from error
