"""Checkpoint: all tensors of a folder, in one safetensors file or in shards with an index.

Called by `engine`, `distributed`, the converter, `verify`, `model_names`, `evaluate` and `deepzig info`; calls
`reader`. Knows nothing of models. If weights are in another format, the error names it, and they are never opened:
pickle runs code.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from deepzig.checkpoint.reader import MAX_HEADER_BYTES, SafetensorsFile, TensorInfo, parse_json_object
from deepzig.errors import CheckpointError, shown
from deepzig.small_files import read_small

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARDS = 10_000
FOREIGN_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".npz", ".onnx")


class Checkpoint:
    """The tensors of a checkpoint folder. Opened by `open_checkpoint`; holds memory maps, no data."""

    def __init__(self, directory: Path, files: list[SafetensorsFile]) -> None:
        self.directory = directory
        self.files: list[Path] = [file.path for file in files]
        self._file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.tensors:
                other = self._file_of.setdefault(name, file)
                if other is not file:
                    raise CheckpointError(
                        f"tensor {shown(name)} lies in both {other.path.name} and {file.path.name} of {directory}; "
                        "fetch the checkpoint again"
                    )
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(
            {name: info for file in files for name, info in file.tensors.items()}
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.infos.values())

    def info(self, name: str) -> TensorInfo:
        """dtype, shape and place of a tensor. Raises CheckpointError for an unknown name."""
        return self._file(name).tensors[name]

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor. Raises CheckpointError for an unknown name."""
        return self._file(name).path

    def array(self, name: str) -> np.ndarray:
        """The tensor, read-only, in the dtype and shape of its `info`. Raises CheckpointError for an unknown name."""
        return self._file(name).array(name)

    def _file(self, name: str) -> SafetensorsFile:
        file = self._file_of.get(name)
        if file is None:
            raise CheckpointError(f"{self.directory} has no tensor {shown(name)}; fetch the checkpoint again")
        return file


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Map the weights of a folder: model.safetensors, else the shards of its index, else a lone *.safetensors.

    (HF's order.) Reads the headers only.

    Raises:
        CheckpointError: no such weights, or a file or the index is not what it must be.
    """
    try:
        return _open(Path(directory))
    except OSError as error:
        raise CheckpointError(f"cannot read {directory} ({error.strerror}); check its permissions") from error


def _open(directory: Path) -> Checkpoint:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no folder; give the folder that holds config.json and the weights")
    if (directory / SINGLE_FILE).exists():
        return Checkpoint(directory, [SafetensorsFile(directory / SINGLE_FILE)])
    if (directory / INDEX_FILE).exists():
        return _open_shards(directory, _weight_map(directory))
    found = sorted(path for path in directory.glob("*.safetensors") if not path.name.startswith("."))
    if len(found) == 1:
        return Checkpoint(directory, [SafetensorsFile(found[0])])
    if found:
        raise CheckpointError(
            f"{directory} holds {len(found)} .safetensors files but no {INDEX_FILE} that says which belong together; "
            "fetch the index"
        )
    refuse_foreign(directory)
    raise CheckpointError(
        f"{directory} holds no .safetensors file; fetch {SINGLE_FILE}, or {INDEX_FILE} and its shards"
    )


def refuse_foreign(directory: Path) -> None:
    """Raise CheckpointError if the folder has weights, but in formats alone that deepzig does not read."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(f"cannot read {directory} ({error.strerror}); check its permissions") from error
    foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
    if not foreign or any(name.endswith(".safetensors") for name in names):
        return
    is_gguf = foreign[0].endswith(".gguf")
    advice = "fetch the original model's" if is_gguf else "convert it (transformers: model.save_pretrained)"
    raise CheckpointError(
        f"{directory} holds {shown(foreign[0])} but no .safetensors; deepzig reads safetensors only, {advice}"
    )


def _weight_map(directory: Path) -> dict[str, str]:
    """The index: tensor name -> base name of a shard."""
    path = directory / INDEX_FILE
    content = read_small(path, MAX_HEADER_BYTES, CheckpointError)
    weight_map: Any = parse_json_object(content.lstrip(), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(v) is str for v in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names; fetch it again")
    shards, home = set(weight_map.values()), Path(os.path.realpath(directory))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(shards)} shards, more than {MAX_SHARDS}; fetch it again")
    for shard in shards:
        _check_shard_name(shard, path, home)
    return weight_map


def _check_shard_name(shard: str, index: Path, home: Path) -> None:
    is_base_name = shard.isprintable() and not set(shard) & set("/\\:") and len(shard) <= 255
    if not is_base_name or shard.startswith(".") or not shard.endswith(".safetensors"):
        raise CheckpointError(
            f"weight_map of {index} names {shown(shard)}, which is no base name of a .safetensors file; do not trust it"
        )
    if not is_within(index.parent / shard, home):
        raise CheckpointError(
            f"{index.parent / shard} is a link that leads out of the folder; put the file itself there if you trust it"
        )


def is_within(path: Path, home: Path) -> bool:
    """Whether `path`, links followed, lies in the folder `home`, or in the blobs of the hub cache if `home` is a
    snapshot of it. home: links followed already."""
    target = Path(os.path.realpath(path))
    if target.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"


def _open_shards(directory: Path, weight_map: dict[str, str]) -> Checkpoint:
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(shards)} shards, the first {shown(missing[0])}; fetch them"
        )
    files = {shard: SafetensorsFile(directory / shard) for shard in shards}
    checkpoint = Checkpoint(directory, list(files.values()))
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            where = "it lies in another" if name in checkpoint.infos else "no shard has it"
            raise CheckpointError(
                f"the index of {directory} puts tensor {shown(name)} into {shown(shard)}, but {where}; "
                "fetch the checkpoint again"
            )
    return checkpoint
