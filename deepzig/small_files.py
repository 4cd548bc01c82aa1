"""Reads small files of folders that anybody may have written: regular files only, up to a size limit.

Called by `config`, `checkpoint`, `text` and `engine`; calls the errors only. A pipe or a device in place of a file
would keep a reader for ever, a sparse file would take all memory.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from deepzig.errors import DeepzigError, shown

_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype", b"<html")


def read_small(path: Path, max_bytes: int, kind: type[DeepzigError]) -> bytes:
    """All bytes of a regular file. Raises `kind` if it cannot be read, is none or a Git LFS pointer, or is larger than
    `max_bytes`."""
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise kind(f"cannot read {path} ({error.strerror}); check the folder of the model") from error
    if len(content) > max_bytes:
        raise kind(f"{path} is larger than {max_bytes >> 20} MiB, as no real one is; fetch it again")
    if content.startswith(_LFS_POINTER):
        raise kind(f"{path} {stand_in_fault(content)}")
    return content


def read_json_object(path: Path, max_bytes: int, kind: type[DeepzigError]) -> dict[str, Any]:
    """The JSON object that a file holds. Raises `kind` as `read_small`, and if it holds none."""
    content = read_small(path, max_bytes, kind)
    if fault := stand_in_fault(content):
        raise kind(f"{path} {fault}")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is no valid JSON ({error}); fetch it again") from error
    if not isinstance(data, dict):
        raise kind(f"{path} holds no JSON object; fetch it again")
    return data


def stand_in_fault(content: bytes) -> str | None:
    """What is wrong with a file that begins so, if it is what a clone or a browser leaves in place of another."""
    if content.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`, or fetch it again"
    if content[:100].lstrip().lower().startswith(_WEB_PAGE):
        return f"is a web page, it starts with {shown(content[:40].decode(errors='replace'))}; fetch the file itself"
    return None


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError for anything else."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")
