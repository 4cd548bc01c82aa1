"""Plan of a conversion: which tensors go into which file, before the first byte of weights is read.

Called by `convert`; calls `directory` and `loader` to map and check the source, `recipe` for the formats and
`quantization_config` for config.json. A plan follows from the source's headers and the recipe alone, so that a resumed
run makes the same one.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepzig._kernels.weight import PLAIN, Weight
from deepzig.checkpoint.directory import MAX_SHARDS, SINGLE_FILE, Checkpoint, open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.names import EMBEDDING, HEAD, expected_tensors
from deepzig.checkpoint.quantization_config import converted_config
from deepzig.checkpoint.reader import DTYPES, parse_json_object
from deepzig.checkpoint.recipe import INTEGERS, Recipe
from deepzig.checkpoint.schemes import CHANNEL, FP8_BLOCK, GROUP_SIZES, KEEP, Scheme, packed_words
from deepzig.checkpoint.writer import Entry
from deepzig.config import MAX_CONFIG_BYTES, ModelConfig
from deepzig.errors import CheckpointError, RequestError
from deepzig.small_files import read_small

_COMPARED_BYTES = 1 << 24


@dataclass(frozen=True)
class Item:
    """A matrix or vector that is converted as a whole and lands in one file, scales and all.

    name      module path of a matrix, name of a vector's tensor
    scheme    how the matrix is stored; KEEP copies the tensors as they are
    weight    the source, None for a vector
    copied    names of the source's tensors
    entries   what is written
    """

    name: str
    scheme: Scheme
    weight: Weight | None
    copied: tuple[str, ...]
    entries: tuple[Entry, ...]
    source_bytes: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    file: str
    items: tuple[Item, ...]

    @property
    def entries(self) -> list[Entry]:
        """All tensors of the file."""
        return [entry for item in self.items for entry in item.entries]


@dataclass(frozen=True)
class Plan:
    """A whole conversion."""

    source: Checkpoint
    shards: tuple[Shard, ...]
    config: bytes  # config.json of the result

    @property
    def index(self) -> bytes | None:
        """model.safetensors.index.json, None if there is one file."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: shard.file for shard in self.shards for name, _, _ in shard.entries}
        total = sum(item.nbytes for shard in self.shards for item in shard.items)
        return as_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def as_json(value: Mapping[str, Any]) -> bytes:
    """JSON as checkpoints store it: in ASCII, which can spell all that config.json can."""
    return json.dumps(value, indent=2).encode() + b"\n"


def make_plan(directory: Path, recipe: Recipe, shard_bytes: int) -> Plan:
    """Check the source in `directory` and lay out the result in files of about shard_bytes.

    Raises:
        ConfigError, CheckpointError: the source cannot be used.
        RequestError: the recipe does not fit the model, or the files would be more than can be read.
    """
    config = ModelConfig.from_directory(directory)
    path = directory / "config.json"
    raw = parse_json_object(read_small(path, MAX_CONFIG_BYTES, CheckpointError).lstrip(), str(path))
    source = open_checkpoint(directory)
    weights = load_weights(source, config)
    expected = expected_tensors(config, config.num_nextn_predict_layers if weights.has_mtp else 0)
    stored = {
        module: weights.linear[module]
        for module in expected.linear
        if module not in expected.alias or not _is_copy(source, module, expected.alias[module])
    }
    schemes = recipe.assign(config, {module: weight.shape for module, weight in stored.items()})
    schemes = {m: _settled(source, m, stored[m], scheme, recipe) for m, scheme in schemes.items()}
    kept = {module for module, weight in stored.items() if _has_already(source, module, weight, schemes[module])}
    items = [_matrix(source, m, weight, KEEP if m in kept else schemes[m]) for m, weight in stored.items()]
    items += [_vector(source, name) for name in expected.vector]
    place = {name: (source.files.index(source.path_of(name)), info.start) for name, info in source.infos.items()}
    items.sort(key=lambda item: min(place[name] for name in item.copied))  # files are read from front to back
    declared = {m: Scheme(stored[m].format) if scheme == KEEP else scheme for m, scheme in schemes.items()}
    config_text = as_json(converted_config(raw, declared, "f16" if recipe.format == "fp16" else recipe.format))
    return Plan(source, _shards(items, shard_bytes), config_text)


def _is_copy(source: Checkpoint, module: str, main: str) -> bool:
    """Whether `module` is not stored, or is the MTP layer's copy of a module of the main model."""
    tensors, others = tensors_of(source, module), tensors_of(source, main)
    if not tensors:
        return True
    if module in (EMBEDDING, HEAD) or tensors.keys() != others.keys():  # both stored: tied in name only
        return False
    return all(_same(source.array(tensors[suffix]), source.array(others[suffix])) for suffix in tensors)


def tensors_of(source: Checkpoint, module: str) -> dict[str, str]:
    """The tensors of a module's weight that `source` has: last part of the name -> name."""
    suffixes = ("weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_shape")
    return {suffix: f"{module}.{suffix}" for suffix in suffixes if f"{module}.{suffix}" in source.infos}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat, flat_other = one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    starts = range(0, flat.size, _COMPARED_BYTES)  # comparing makes an array of the same length
    return all(np.array_equal(flat[i : i + _COMPARED_BYTES], flat_other[i : i + _COMPARED_BYTES]) for i in starts)


def _settled(source: Checkpoint, module: str, weight: Weight, scheme: Scheme, recipe: Recipe) -> Scheme:
    """The scheme to write: `scheme`; KEEP if the source is already stored so; the source's own integer scheme if
    re-rounding would only lose; bf16 for what the new config.json cannot declare."""
    same_fp8 = weight.format == "fp8" and (weight.block_rows, weight.group_size) == (FP8_BLOCK, FP8_BLOCK)
    if recipe.format == "fp8" and same_fp8 and scheme.format in ("", "fp8"):
        return KEEP
    stored = Scheme(weight.format, weight.group_size if weight.group_size in GROUP_SIZES else CHANNEL)
    if scheme == KEEP and weight.format not in PLAIN:
        has_fp8 = "fp8" in (recipe.format, *(wanted for _, wanted in recipe.include))
        return Scheme("bf16") if has_fp8 or not _has_already(source, module, weight, stored) else stored
    if recipe.group_size is None and scheme.format == weight.format and _has_already(source, module, weight, stored):
        return stored  # whatever its groups: rounding it again would only lose
    return KEEP if scheme.format == weight.format and weight.format in PLAIN else scheme


def _has_already(source: Checkpoint, module: str, weight: Weight, scheme: Scheme) -> bool:
    """Whether the source stores integers by `scheme`: searching int4 scales again would only lose. weight_shape may
    have any dtype that `formats` reads."""
    return scheme.format in INTEGERS and scheme.format == weight.format and all(
        (info := source.infos.get(f"{module}.{suffix}")) is not None
        and info.shape == shape
        and (info.dtype == dtype or suffix == "weight_shape")
        for suffix, dtype, shape in stored_tensors(weight.shape, scheme)
    )


def _matrix(source: Checkpoint, module: str, weight: Weight, scheme: Scheme) -> Item:
    copied = tuple(tensors_of(source, module).values())
    if scheme == KEEP:
        entries = tuple((name, source.info(name).dtype, source.info(name).shape) for name in copied)
    else:
        tensors = stored_tensors(weight.shape, scheme)
        entries = tuple((f"{module}.{suffix}", dtype, shape) for suffix, dtype, shape in tensors)
    return _item(source, module, scheme, weight, copied, entries)


def stored_tensors(shape: tuple[int, int], scheme: Scheme) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Suffix, dtype and shape of the tensors that store a matrix (N, K); the codes first."""
    n_rows, n_columns = shape
    if scheme.format in PLAIN:
        yield "weight", scheme.format.upper(), shape
    elif scheme.format == "fp8":
        yield "weight", "F8_E4M3", shape
        yield "weight_scale_inv", "F32", (-(-n_rows // FP8_BLOCK), -(-n_columns // FP8_BLOCK))
    else:
        n_groups = 1 if scheme.group_size == CHANNEL else n_columns // scheme.group_size
        yield "weight_packed", "I32", (n_rows, packed_words(n_columns, scheme.bits))
        yield "weight_scale", "BF16", (n_rows, n_groups)
        yield "weight_shape", "I64", (2,)


def _vector(source: Checkpoint, name: str) -> Item:
    entry = (name, source.info(name).dtype, source.info(name).shape)
    return _item(source, name, KEEP, None, (name,), (entry,))


def _item(
    source: Checkpoint,
    name: str,
    scheme: Scheme,
    weight: Weight | None,
    copied: tuple[str, ...],
    entries: tuple[Entry, ...],
) -> Item:
    nbytes = sum(math.prod(shape) * DTYPES[dtype].itemsize for _, dtype, shape in entries)
    return Item(name, scheme, weight, copied, entries, sum(source.info(tensor).nbytes for tensor in copied), nbytes)


def _shards(items: list[Item], shard_bytes: int) -> tuple[Shard, ...]:
    groups: list[list[Item]] = [[]]
    room = shard_bytes
    for item in items:
        if groups[-1] and item.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(item)
        room -= item.nbytes
    if not items:
        raise CheckpointError("the checkpoint has no tensors to convert")
    if len(groups) > MAX_SHARDS:
        raise RequestError(f"{len(groups)} files of {shard_bytes} bytes are more than {MAX_SHARDS}; allow larger ones")
    if len(groups) == 1:
        return (Shard(SINGLE_FILE, tuple(groups[0])),)
    stem = SINGLE_FILE.removesuffix(".safetensors")
    return tuple(
        Shard(f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group)) for i, group in enumerate(groups, 1)
    )
