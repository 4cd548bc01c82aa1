"""Manifest: what a conversion is made from and which of its files are finished, so that it can be resumed and verified.

Called by `convert` and `verify`; calls `safe_files`. deepzig-manifest.jsonl lies beside the files that it lists. Its
first line says how they are made, every other line names one file:

    {"deepzig_manifest": 1, "options": {...}, "source": {...}}
    {"file": "model-00001-of-00002.safetensors", "nbytes": 4000000000, "sha256": "...", "tensors": 812}

A line is appended when its file is on the disk. Nothing in it depends on time, machine or interruptions.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepzig.checkpoint.safe_files import replace_file, room_errors
from deepzig.errors import CheckpointError, shown
from deepzig.small_files import read_small

MANIFEST_FILE = "deepzig-manifest.jsonl"
VERSION = 1
MAX_MANIFEST_BYTES = 1 << 24  # a line has some 150
_CHUNK = 1 << 22
_SHOWN_DIFFERENCES = 4

Header = Mapping[str, Any]


@dataclass(frozen=True)
class FileRecord:
    """A finished file."""

    file: str
    nbytes: int
    sha256: str
    tensors: int = 0  # of a file of weights


class Manifest:
    """The manifest of a folder: a new one, or as `read` finds it."""

    def __init__(self, directory: Path, header: Header, records: Iterable[FileRecord]) -> None:
        """Writes nothing before `rewrite`."""
        self.path = directory / MANIFEST_FILE
        self.header: Header = json.loads(_line({"deepzig_manifest": VERSION, **header}))
        self.records = {record.file: record for record in records}

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """The manifest of a folder, None if it has none. A last line that was cut short does not count.

        Raises CheckpointError if it is not what this file says.
        """
        path = directory / MANIFEST_FILE
        if not os.path.exists(path):  # Path.exists raises where a folder may be listed but not searched
            return None
        content = read_small(path, MAX_MANIFEST_BYTES, CheckpointError)
        try:
            header, *records = [json.loads(line) for line in content.split(b"\n")[:-1]]
            if header["deepzig_manifest"] != VERSION:
                raise CheckpointError(f"{path} is of version {shown(header['deepzig_manifest'])}, not {VERSION}")
            return cls(directory, header, [_record(**record) for record in records])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is no manifest ({shown(str(error))}); delete the folder and start again"
            ) from error

    def add(self, record: FileRecord) -> None:
        """Append the line of a file that is finished, and bring it to the disk."""
        with room_errors(self.path), self.path.open("ab") as file:
            file.write(_line(asdict(record)))
            file.flush()
            os.fsync(file.fileno())
        self.records[record.file] = record

    def rewrite(self, records: Iterable[FileRecord]) -> None:
        """Replace the list, in this order, all at once."""
        self.records = {record.file: record for record in records}
        lines = [_line(self.header), *(_line(asdict(record)) for record in self.records.values())]
        replace_file(self.path, b"".join(lines))

    def check_header(self, header: Header) -> None:
        """Raise CheckpointError that says what differs between this manifest's header and `header`."""
        then, now = _flat(self.header), _flat(Manifest(self.path.parent, header, []).header)
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if not changed:
            return
        described = [f"{name} was {shown(then.get(name))}, is {shown(now.get(name))}" for name in changed]
        more = f"; and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise CheckpointError(
            f"cannot resume {self.path.parent}: {'; '.join(described[:_SHOWN_DIFFERENCES])}{more}; "
            "give the same options and source, or delete the folder and start again"
        )


def fault_of(directory: Path, record: FileRecord, progress: Callable[[int], None] = lambda nbytes: None) -> str | None:
    """What is wrong with a recorded file, None if its size and hash are right. progress is told of the bytes read."""
    path = directory / record.file
    try:
        if Path(record.file).name != record.file or not path.is_file():
            return "is missing"
        if path.stat().st_size != record.nbytes:
            return f"has {path.stat().st_size} bytes, not {record.nbytes}"
        return None if hash_of(path, progress) == record.sha256 else "is not what was written: its hash differs"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"cannot be read ({shown(str(error))})"


def _record(file: Any, nbytes: Any, sha256: Any, tensors: Any = 0) -> FileRecord:
    """A record as it was read. Raises TypeError."""
    if not isinstance(file, str) or not isinstance(sha256, str) or type(nbytes) is not int or type(tensors) is not int:
        raise TypeError(f"{shown(file)} is not described by its size, hash and number of tensors")
    return FileRecord(file, nbytes, sha256, tensors)


def record_of(path: Path, n_tensors: int = 0) -> FileRecord:
    """The record of a file, read back from it."""
    return FileRecord(path.name, path.stat().st_size, hash_of(path), n_tensors)


def hash_of(path: Path, progress: Callable[[int], None] = lambda nbytes: None) -> str:
    """SHA-256 of a file: the fastest of hashlib where the CPU has instructions for it, and what sha256sum prints."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _line(value: Mapping[str, Any]) -> bytes:
    """A line of the manifest in ASCII, which can spell names of files that are no UTF-8."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one: {"options.format": "int8"}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{name}" if prefix else str(name)))
    return flat
