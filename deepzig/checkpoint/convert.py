"""convert: a checkpoint folder in, the same model in another format out, whole or resumable.

Called by the command line and the bench; calls `plan`, `quantize`, `writer` and `companions`. Order on the disk: the
manifest's first line; each file of weights under a temporary name, then its own, then its line in the manifest; the
small files; the index; config.json last. A folder that has config.json is whole, and one that has not can be resumed.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from deepzig.checkpoint.companions import read_companions
from deepzig.checkpoint.directory import INDEX_FILE
from deepzig.checkpoint.manifest import MANIFEST_FILE, FileRecord, Manifest, fault_of, record_of
from deepzig.checkpoint.plan import Item, Plan, Shard, make_plan
from deepzig.checkpoint.quantize import Quantizer, Slab, find_non_finite, non_finite, row_slabs
from deepzig.checkpoint.reader import DTYPES
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.safe_files import locked, names_in, remove_temporary, replace_file, room_errors
from deepzig.checkpoint.schemes import KEEP
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.errors import CheckpointError, ResourceError, shown, shown_bytes

REVISION = 2  # changes when a recipe gives other bytes: a folder begun by another revision is not resumed
SHARD_BYTES = 4_000_000_000
SPARE_BYTES = 16 << 20  # for headers, the small files and the file system


@dataclass(frozen=True)
class Progress:
    """How far a conversion is; bytes are those of the source's weights."""

    bytes_done: int
    bytes_total: int
    tensors_done: int  # matrices and vectors
    tensors_total: int
    file: str  # file that is being written


@dataclass(frozen=True)
class Result:
    """What a conversion has written."""

    files: int
    nbytes: int
    resumed_files: int  # files of weights that an earlier run had finished


@dataclass(frozen=True)
class Options:
    """All that decides the bytes of the result, beside the source.

    importance       module path -> f32 (K,), what the squared error of a column counts for in int4
    allow_nonfinite  convert NaN and infinity too
    """

    recipe: Recipe
    shard_bytes: int = SHARD_BYTES
    allow_nonfinite: bool = False
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)

    def as_header(self) -> dict[str, Any]:
        """The options, as the manifest has them."""
        digest = sha256()
        for module, counts in sorted(self.importance.items()):
            digest.update(module.encode() + b"\0" + counts.tobytes())
        return {
            **asdict(self.recipe),
            "shard_bytes": self.shard_bytes,
            "allow_nonfinite": self.allow_nonfinite,
            "importance": digest.hexdigest() if self.importance else None,
        }


def convert(
    source: Path,
    destination: Path,
    options: Options,
    *,
    resume: bool = False,
    n_threads: int = 1,
    progress: Callable[[Progress], None] = lambda state: None,
) -> Result:
    """Convert the checkpoint in `source` to a new folder `destination`.

    resume: go on with a folder that an interrupted run has left; the result is the same, byte for byte.

    Raises:
        ConfigError, CheckpointError: the source cannot be used, or the destination is taken or was begun otherwise.
        ResourceError: the disk is full or will be; what is finished stays.
        RequestError: the recipe does not fit the model, or the files would be more than can be read.
    """
    with room_errors(destination):
        _check_folders(source, destination, resume)
    plan = make_plan(source, options.recipe, options.shard_bytes)
    header = {"revision": REVISION, "options": options.as_header(), "source": _fingerprint(plan)}
    if not resume and (begun := Manifest.read(destination)) is not None:
        raise _taken(begun, header)
    with _folder(destination), locked(destination):
        manifest = Manifest.read(destination) or Manifest(destination, header, [])
        manifest.check_header(header)
        remove_temporary(destination)
        finished = [record for record in manifest.records.values() if fault_of(destination, record) is None]
        conversion = _Conversion(plan, destination, options, n_threads, progress)
        return conversion.run(manifest, finished)


def _check_folders(source: Path, destination: Path, resume: bool) -> None:
    if os.path.realpath(source) == os.path.realpath(destination):  # Path.resolve raises at a link to itself
        raise CheckpointError(f"source and destination are the same folder, {source}; give another destination")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is no folder; give another destination")
    names = names_in(destination)
    if names and MANIFEST_FILE not in names:
        fault = "holds no conversion to resume" if resume else "is not empty"
        raise CheckpointError(f"{destination} {fault}; give a new folder")


def _taken(begun: Manifest, header: Mapping[str, Any]) -> CheckpointError:
    """What is in the way of a new conversion. Raises CheckpointError if it cannot be resumed as `header` asks."""
    directory = begun.path.parent
    if os.path.exists(directory / "config.json"):
        options = begun.header.get("options")
        kind = options.get("format") if isinstance(options, dict) else None
        return CheckpointError(f"{directory} is a finished conversion to {shown(kind)}; give another folder")
    begun.check_header(header)
    return CheckpointError(f"{directory} is not empty; --resume goes on with it")


def _fingerprint(plan: Plan) -> dict[str, Any]:
    """Tells whether the source has changed: for each file of weights its size, the time of its last change, and its
    header."""
    files = {}
    for path in plan.source.files:
        status = path.stat()
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = sha256(file.read(length)).hexdigest()
        files[path.name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "header_sha256": header}
    return {"config_sha256": sha256((plan.source.directory / "config.json").read_bytes()).hexdigest(), "files": files}


@contextmanager
def _folder(directory: Path) -> Iterator[None]:
    """Make the folder unless it is there; after an error a new folder that is empty is removed."""
    is_new = not directory.exists()
    with room_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new and not any(directory.iterdir()):
            directory.rmdir()
        raise


def _result(records: list[FileRecord], resumed_files: int) -> Result:
    return Result(len(records), sum(record.nbytes for record in records), resumed_files)


class _Conversion:
    """One run. The folder is locked."""

    def __init__(
        self, plan: Plan, destination: Path, options: Options, n_threads: int, progress: Callable[[Progress], None]
    ) -> None:
        self._plan, self._destination, self._options = plan, destination, options
        self._quantizer = Quantizer(options.importance, options.allow_nonfinite, n_threads)
        self._progress = progress
        items = [item for shard in plan.shards for item in shard.items]
        self._total = sum(item.source_bytes for item in items), len(items)
        self._bytes_done = self._tensors_done = 0

    def run(self, manifest: Manifest, finished: list[FileRecord]) -> Result:
        """Write what is not among the `finished` files."""
        small = self._small_files()
        done = {record.file for record in finished}
        missing = [shard for shard in self._plan.shards if shard.file not in done]
        if not missing and done.issuperset(small):
            return _result(finished, len(finished))
        self._check_room(missing, small)
        with room_errors(self._destination / "config.json"):
            (self._destination / "config.json").unlink(missing_ok=True)
        try:
            manifest.rewrite(record for record in finished if record.file not in small)
            self._skip([shard for shard in self._plan.shards if shard not in missing])
            for shard in missing:
                manifest.add(self._shard(shard))
            records = [manifest.records[shard.file] for shard in self._plan.shards]
            records += [FileRecord(name, len(text), sha256(text).hexdigest()) for name, text in small.items()]
            manifest.rewrite(records)
            for name, text in small.items():
                replace_file(self._destination / name, text)
        except ResourceError as error:
            raise ResourceError(f"{error}, then go on with --resume: finished files stay") from error
        finally:
            if not manifest.records:
                manifest.path.unlink(missing_ok=True)
        return _result(records, len(self._plan.shards) - len(missing))

    def _small_files(self) -> dict[str, bytes]:
        """Name -> content of all files that are no weights, config.json last."""
        files = dict(read_companions(self._plan.source.directory))
        if (index := self._plan.index) is not None:
            files[INDEX_FILE] = index
        return {**files, "config.json": self._plan.config}

    def _check_room(self, missing: list[Shard], small: Mapping[str, bytes]) -> None:
        needed = sum(item.nbytes for shard in missing for item in shard.items) + sum(map(len, small.values()))
        needed += SPARE_BYTES
        free = shutil.disk_usage(self._destination).free
        if missing and free < needed:
            raise ResourceError(
                f"{self._destination} needs {shown_bytes(needed)}, {shown_bytes(free)} are free; make room"
            )

    def _skip(self, finished: list[Shard]) -> None:
        """Report at once what an earlier run has done, so that it does not count for the speed."""
        items = [item for shard in finished for item in shard.items]
        self._tensors_done += len(items)
        if items:
            self._report(sum(item.source_bytes for item in items), finished[-1])

    def _shard(self, shard: Shard) -> FileRecord:
        path = self._destination / shard.file
        rounded = [item for item in shard.items if item.scheme != KEEP]
        with (
            SafetensorsWriter(path, shard.entries, {"format": "pt"}) as writer,
            closing(self._quantizer.slabs(rounded)) as slabs,
        ):
            self._write(writer, shard, slabs)
        return record_of(path, len(shard.entries))

    def _write(self, writer: SafetensorsWriter, shard: Shard, slabs: Iterator[Slab]) -> None:
        for item in shard.items:
            self._check_scales(item)
            if item.scheme == KEEP:
                self._copy(writer, shard, item)
            else:
                self._matrix(writer, shard, item, slabs)

    def _check_scales(self, item: Item) -> None:
        """Check the scales first: decoding, which checks the values, would blame a bad scale on the codes."""
        if self._options.allow_nonfinite:
            return
        for name in item.copied:
            if item.scheme == KEEP or name.rpartition(".")[2].startswith("weight_scale"):
                index = find_non_finite(self._plan.source.array(name))
                if index is not None:
                    raise non_finite(name, index)

    def _copy(self, writer: SafetensorsWriter, shard: Shard, item: Item) -> None:
        for name in item.copied:
            writer.write(name, self._plan.source.array(name))
            self._advance(self._plan.source.info(name).nbytes, shard, is_last=name == item.copied[-1])

    def _matrix(self, writer: SafetensorsWriter, shard: Shard, item: Item, slabs: Iterator[Slab]) -> None:
        assert item.weight is not None
        name, dtype, _ = item.entries[0]
        scales: list[np.ndarray] = []

        def codes() -> Iterator[np.ndarray]:
            done, parts = 0, row_slabs(item)
            for i, slab in enumerate((next(slabs) for _ in parts), 1):
                yield slab.codes.view(DTYPES[dtype])
                if slab.scale is not None:
                    scales.append(slab.scale)
                reached = item.source_bytes * i // len(parts)
                self._advance(reached - done, shard, is_last=i == len(parts))
                done = reached

        writer.write(name, codes())
        for name, dtype, _ in item.entries[1:]:
            if name.endswith(".weight_shape"):
                writer.write(name, np.array(item.weight.shape, np.int64))
            else:
                writer.write(name, (scale.view(DTYPES[dtype]) for scale in scales))

    def _advance(self, nbytes: int, shard: Shard, is_last: bool) -> None:
        """Report bytes of an item, and the item with its last bytes."""
        self._tensors_done += is_last
        self._report(nbytes, shard)

    def _report(self, nbytes: int, shard: Shard) -> None:
        self._bytes_done += nbytes
        self._progress(Progress(self._bytes_done, self._total[0], self._tensors_done, self._total[1], shard.file))
