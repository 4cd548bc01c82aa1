"""Files and folders that are whole or absent: replacing a small file, locking a folder, room on the disk.

Called by `convert`, `manifest`, `writer`, `hub`, the prompt cache and the chat; calls the errors only. Large files of
tensors are `writer`'s, by the same rule: written under a temporary name, brought to the disk, then renamed.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from deepzig.errors import CheckpointError, ResourceError, shown_bytes

LOCK_FILE = ".deepzig-quantize.lock"
_TEMPORARY = re.compile(r".*\.tmp-\d+")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file, all or nothing. Raises ResourceError if the disk is full, CheckpointError if it fails
    otherwise."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with room_errors(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def sync_directory(directory: Path) -> None:
    """Bring new names to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def room_errors(path: Path, nbytes: int = 0) -> Iterator[None]:
    """Turn an OSError while writing `nbytes` to `path` into an error for users."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            there = next(folder for folder in (*path.parents, Path()) if os.path.exists(folder))
            free = shutil.disk_usage(there).free
            raise ResourceError(
                f"cannot write {path}: it needs {shown_bytes(nbytes)}, {shown_bytes(free)} are free; make room"
            ) from error
        reason = error.strerror or error
        raise CheckpointError(f"cannot write {path} ({reason}); check folder and permissions") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with it, however it ends.

    Raises CheckpointError with the pid of the process that has it.
    """
    path = directory / LOCK_FILE
    with room_errors(path):
        file = path.open("a+")
    with file:
        if not _try_lock(file, path):
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise CheckpointError(f"{directory} is being written by another conversion (process {holder}); wait for it")
        try:
            with room_errors(path):
                file.truncate(0)
                os.write(file.fileno(), b"%d\n" % os.getpid())  # unbuffered: closing would try a second time
            yield
        finally:
            path.unlink(missing_ok=True)


def _try_lock(file: TextIO, path: Path) -> bool:
    """Whether the lock is ours, on the file that `path` names now: its last holder may just have removed the one we
    opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def names_in(directory: Path) -> set[str]:
    """Names in a folder, without the lock and what interrupted runs left half-written."""
    return {path.name for path in directory.iterdir() if path.name != LOCK_FILE and not _is_temporary(path)}


def remove_temporary(directory: Path) -> None:
    """Remove what interrupted runs left half-written. The folder must be locked."""
    with room_errors(directory):
        for path in filter(_is_temporary, directory.iterdir()):
            path.unlink()


def _is_temporary(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()  # none of ours
    return _TEMPORARY.fullmatch(path.name) is not None and not is_folder
