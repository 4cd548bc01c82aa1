"""How large a model is: its parameters, the formats and bytes of its matrices, and the bytes that a token reads.

Called by `engine`, `server`, `evaluate`, `deepzig info` and the bench; calls `names`, `recipe`, `plan` and, where there
are no weights yet, `quantization_config`. Config and headers are enough: it reads no values. Knows nothing of memory
and speed.
"""

import dataclasses
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deepzig.checkpoint.loader import ModelWeights
from deepzig.checkpoint.names import EMBEDDING, HEAD, Expected, expected_tensors
from deepzig.checkpoint.plan import stored_tensors
from deepzig.checkpoint.quantization_config import integer_schemes
from deepzig.checkpoint.reader import DTYPES
from deepzig.checkpoint.recipe import INTEGERS, Recipe
from deepzig.checkpoint.schemes import GROUP_SIZES, KEEP, Declared, Scheme, declared_scheme
from deepzig.config import ModelConfig

LAYERS = "model.layers."
ROUTED, EMBEDDINGS, MTP = "routed experts", "embedding", "MTP"
# First match wins. MTP layers are told apart by their number, before these.
GROUPS = (
    (".mlp.experts.", ROUTED),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate_proj", "dense layers"),
    (".mlp.up_proj", "dense layers"),
    (".mlp.down_proj", "dense layers"),
    (".mlp.gate", "router"),
    ("norm", "norms"),
    (".self_attn.", "attention"),
    (EMBEDDING, EMBEDDINGS),
    (HEAD, "head"),
)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, from config.json."""

    total: int  # of the main model
    active: int  # read for each token: without the experts that it is not sent to, and without the embedding
    mtp: int  # of the MTP layers, without copies of embedding and head


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model's tensors."""

    formats: dict[str, dict[str, int]]  # group -> format of its matrices -> bytes
    nbytes: int  # of all tensors
    bytes_per_token: int  # weights that decoding a token reads

    @property
    def by_format(self) -> Counter[str]:
        """Format -> bytes of all groups' matrices."""
        total: Counter[str] = Counter()
        for formats in self.formats.values():
            total.update(formats)
        return total

    @property
    def main_format(self) -> str:
        """The format that most bytes have, without group sizes."""
        total: Counter[str] = Counter()
        for name, nbytes in self.by_format.items():
            total[name.split()[0]] += nbytes
        return total.most_common(1)[0][0]


class _Matrix(NamedTuple):
    format: str
    nbytes: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Sizes of all the tensors that the config asks for, added up."""
    expected = expected_tensors(config, config.num_nextn_predict_layers)
    copies = _copies(expected)
    stored: Counter[str] = Counter()
    active = 0.0
    for name, shape in [*expected.linear.items(), *expected.vector.items()]:
        size, group = math.prod(shape), tensor_group(name, config)
        active += size * active_share(config, group)
        stored[group] += 0 if name in copies else size
    return ParameterCount(stored.total() - stored[MTP], round(active), stored[MTP])


def tensor_group(name: str, config: ModelConfig) -> str:
    """The part of the model that a module or tensor belongs to, as `deepzig info` calls it."""
    if name.startswith(LAYERS) and int(name[len(LAYERS) : name.index(".", len(LAYERS))]) >= config.num_hidden_layers:
        return MTP
    return next(group for part, group in GROUPS if part in name)


def active_share(config: ModelConfig, group: str) -> float:
    """How much of a group decoding a token reads: K / E of the routed experts, nothing of embedding and MTP, all of the
    rest."""
    if group in (EMBEDDINGS, MTP):
        return 0.0
    return config.num_experts_per_tok / config.n_routed_experts if group == ROUTED else 1.0


def stored_size(config: ModelConfig, weights: ModelWeights) -> ModelSize:
    """The size of a model whose weights are there."""
    matrices, copies, seen = {}, set(), set()
    for module, weight in weights.linear.items():
        matrices[module] = _Matrix(_label(weight.format, weight.group_size, weight.shape[1]), weight.nbytes)
        if id(weight) in seen:
            copies.add(module)
        seen.add(id(weight))
    return _size(config, matrices, copies, sum(vector.nbytes for vector in weights.vector.values()))


def declared_size(config: ModelConfig) -> ModelSize:
    """The size of a model of which there is only config.json, as its publisher stores it: MTP layers with copies of
    embedding and head. Raises CheckpointError for a quantisation that deepzig does not compute."""
    expected = expected_tensors(config, config.num_nextn_predict_layers)
    copies = {HEAD} if config.tie_word_embeddings else set()
    schemes = declared_schemes(config, expected.linear)
    size, declared = _size_of_schemes(config, expected, schemes, copies), declared_scheme(config.quantization_config)
    return _with_names_of_blocks(size, declared) if declared is not None and declared.block_format else size


def converted_size(config: ModelConfig, recipe: Recipe, *, with_mtp: bool = True) -> ModelSize:
    """The size of what `deepzig quantize` would make of the model. with_mtp: it has the MTP layers that the config
    names."""
    expected = expected_tensors(config, config.num_nextn_predict_layers if with_mtp else 0)
    copies = _copies(expected)
    chosen = recipe.assign(config, {name: shape for name, shape in expected.linear.items() if name not in copies})
    schemes = {}
    for module in expected.linear:
        source = module
        while source in copies:
            source = expected.alias[source]
        schemes[module] = Scheme(config.plain_format) if chosen[source] == KEEP else chosen[source]
    return _size_of_schemes(config, expected, schemes, copies)


def declared_schemes(config: ModelConfig, modules: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
    """How modules, with their (N, K), are stored according to config.json. Raises as `declared_size`."""
    declared, plain = declared_scheme(config.quantization_config), Scheme(config.plain_format)
    if declared is None or config.quantization_config is None:
        return dict.fromkeys(modules, plain)
    if declared.block_format:  # int8 in blocks has the bytes of fp8; `declared_size` gives it its name
        chosen = Recipe("fp8").assign(config, modules)
    else:
        chosen = integer_schemes(config.quantization_config, modules)
    return {module: plain if scheme == KEEP else scheme for module, scheme in chosen.items()}


def _with_names_of_blocks(size: ModelSize, declared: Declared) -> ModelSize:
    """The bytes that were counted as fp8, under the name that `stored_size` gives them."""
    names = {"fp8": _label(declared.block_format, declared.block[1], 0)}
    formats = {group: {names.get(name, name): n for name, n in found.items()} for group, found in size.formats.items()}
    return dataclasses.replace(size, formats=formats)


def _copies(expected: Expected) -> set[str]:
    """Modules that need no weight of their own; of a tied pair, the head."""
    return {module for module in expected.alias if module != EMBEDDING}


def _size_of_schemes(
    config: ModelConfig, expected: Expected, schemes: Mapping[str, Scheme], copies: set[str]
) -> ModelSize:
    matrices = {module: _matrix(expected.linear[module], scheme) for module, scheme in schemes.items()}
    vector_bytes = sum(  # in bf16 except the router's bias, as DeepSeek stores them
        math.prod(shape) * (4 if name.endswith("e_score_correction_bias") else 2)
        for name, shape in expected.vector.items()
    )
    return _size(config, matrices, copies, vector_bytes)


@functools.cache  # most matrices of a model have the shape of many others
def _matrix(shape: tuple[int, int], scheme: Scheme) -> _Matrix:
    """Bytes of codes and scales. An integer matrix stores its shape too, in 16 bytes that nobody reads again."""
    tensors = stored_tensors(shape, scheme)
    nbytes = sum(math.prod(size) * DTYPES[dtype].itemsize for name, dtype, size in tensors if name != "weight_shape")
    return _Matrix(_label(scheme.format, scheme.group_size or shape[1], shape[1]), nbytes)


def _size(config: ModelConfig, matrices: Mapping[str, _Matrix], copies: set[str], vector_bytes: int) -> ModelSize:
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    read = 0.0
    for module, matrix in matrices.items():
        group = tensor_group(module, config)
        read += matrix.nbytes * active_share(config, group)
        if module not in copies:
            groups[group][matrix.format] += matrix.nbytes
    nbytes = vector_bytes + sum(formats.total() for formats in groups.values())
    return ModelSize({group: dict(formats) for group, formats in groups.items()}, nbytes, round(read))


def _label(weight_format: str, group_size: int, n_columns: int) -> str:
    """A format as people read it: "bf16", "int8 g128", or "int8 row" with one scale a row of any length."""
    if weight_format not in INTEGERS:
        return weight_format
    is_row = group_size == n_columns and group_size not in GROUP_SIZES
    return f"{weight_format} row" if is_row else f"{weight_format} g{group_size}"
