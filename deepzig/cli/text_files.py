"""Text that a user gives, as a file or as bytes. Called by the commands and by `chat_input`."""

from pathlib import Path
from typing import BinaryIO

import click

MAX_TEXT_BYTES = 1 << 26  # more than any context holds; a pipe and /dev/zero may have no end


def read_text(path: Path) -> str:
    """A file whose line breaks of any kind become "\\n". Raises click.UsageError as `read_whole`."""
    with path.open("rb") as file:
        return read_whole(file, str(path)).replace("\r\n", "\n").replace("\r", "\n")


def read_whole(file: BinaryIO, origin: str) -> str:
    """The text of a file or pipe. Raises click.UsageError that names `origin` if it is not UTF-8, or too large."""
    raw = file.read(MAX_TEXT_BYTES + 1)
    check_size(raw, origin)
    return decode(raw, origin)


def check_size(raw: bytes, origin: str) -> None:
    """Raises click.UsageError for bytes of a text that went on after MAX_TEXT_BYTES."""
    if len(raw) > MAX_TEXT_BYTES:
        raise click.UsageError(f"{origin} is larger than {MAX_TEXT_BYTES >> 20} MiB; give less of it")


def decode(raw: bytes, origin: str) -> str:
    """The text of UTF-8 bytes. Raises click.UsageError that names `origin`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{origin} is not UTF-8 at byte {error.start}; convert it first") from error
