"""verify: is a checkpoint folder whole and sound, whoever wrote it?

Called by the command line; calls `manifest`, `directory` and `loader`. Reads every byte: hashes against the manifest,
if there is one; headers by our reader and by the safetensors library, which must agree; names and shapes against
config.json; and all values. Collects what is wrong instead of stopping at the first.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepzig._kernels.weight import Weight
from deepzig.checkpoint.directory import Checkpoint, open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.manifest import MANIFEST_FILE, Manifest, fault_of
from deepzig.checkpoint.quantize import find_non_finite
from deepzig.checkpoint.reader import TensorInfo
from deepzig.config import ModelConfig
from deepzig.errors import CheckpointError, ConfigError, shown

Advance = Callable[[int], None]  # told of bytes read, hashing and values each


@dataclass
class Report:
    """What was checked, and what is wrong with it."""

    has_manifest: bool
    files: int = 0  # of weights
    tensors: int = 0
    nbytes: int = 0  # of tensors
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what is unusual, but no fault


def verify(directory: Path, advance: Advance = lambda nbytes: None) -> Report:
    """Check the checkpoint in `directory`. Raises CheckpointError only if the folder cannot be read at all."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no folder; give the folder of a checkpoint")
    report = Report(os.path.exists(directory / MANIFEST_FILE))
    report.problems.extend(_manifest_problems(directory, advance))
    try:
        checkpoint = open_checkpoint(directory)
    except CheckpointError as error:
        report.problems.append(str(error))
        return report
    report.files, report.tensors, report.nbytes = len(checkpoint.files), len(checkpoint.infos), checkpoint.nbytes
    report.problems.extend(_second_opinion(checkpoint))
    linear = _check_model(checkpoint, report)
    report.problems.extend(_value_problems(checkpoint, linear, advance))
    return report


def bytes_to_read(directory: Path) -> int:
    """The sum of what `advance` will be told, as far as is known beforehand."""
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors") if os.path.isfile(path))
    return 2 * weights if os.path.exists(directory / MANIFEST_FILE) else weights


def _manifest_problems(directory: Path, advance: Advance) -> Iterator[str]:
    try:
        manifest = Manifest.read(directory)
    except CheckpointError as error:
        yield str(error)
        return
    if manifest is None:
        return
    if not (directory / "config.json").exists():
        yield f"{directory} has a manifest but no config.json: the conversion has not ended; go on with --resume"
    for record in manifest.records.values():
        if fault := fault_of(directory, record, advance):
            yield f"{shown(record.file)} {fault}"
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in manifest.records:
            yield f"{shown(path.name)} is not in the manifest"


def _second_opinion(checkpoint: Checkpoint) -> Iterator[str]:
    """Where the safetensors library reads a header differently."""
    import safetensors

    by_file: dict[Path, dict[str, TensorInfo]] = {path: {} for path in checkpoint.files}
    for name, info in checkpoint.infos.items():
        by_file[checkpoint.path_of(name)][name] = info
    for path in checkpoint.files:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                theirs = {
                    name: (part.get_dtype(), tuple(part.get_shape()))
                    for name, part in ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
                }
        except (safetensors.SafetensorError, OSError) as error:
            yield f"{path.name}: the safetensors library refuses it: {shown(str(error))}"
            continue
        infos = by_file[path]
        for name in sorted(theirs.keys() ^ infos.keys()):
            yield f"{path.name}: {shown(name)} is seen by one of two readers only"
        for name in sorted(theirs.keys() & infos.keys()):
            if theirs[name] != (infos[name].dtype, infos[name].shape):
                yield f"{path.name}: {shown(name)} is read as {shown(theirs[name])} by the safetensors library"


def _check_model(checkpoint: Checkpoint, report: Report) -> dict[str, Weight]:
    """Check that the tensors are those that config.json asks for, as `deepzig.load` sees them. Returns the matrices, if
    so."""
    linear: dict[str, Weight] = {}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            linear = load_weights(checkpoint, ModelConfig.from_directory(checkpoint.directory)).linear
    except (ConfigError, CheckpointError) as error:
        report.problems.append(str(error))
    report.remarks.extend(str(warning.message) for warning in caught)
    return linear


def _value_problems(checkpoint: Checkpoint, linear: Mapping[str, Weight], advance: Advance) -> Iterator[str]:
    """NaN and infinity, and stored shapes, which loading does not read, that differ from those of the matrices."""
    for name in checkpoint.infos:
        values = checkpoint.array(name)
        index = find_non_finite(values, advance)
        if index is not None:
            yield f"{shown(name)} holds NaN or infinity at {list(index)}"
        module, _, suffix = name.rpartition(".")
        if suffix == "weight_shape" and module in linear and values.tolist() != list(linear[module].shape):
            yield f"{shown(name)} says {shown(values.tolist())}, expected {list(linear[module].shape)}"
