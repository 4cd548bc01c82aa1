"""Scheme: how a matrix is stored. Declared: the schemes in the `quantization_config` of config.json.

Called by `formats`, `loader`, `sizes`, `recipe` and the converter; calls nothing but the errors. Refuses schemes that
deepzig does not compute. Knows no tensors: `formats` reads from them how each weight is stored, and asks here only
whether that contradicts the config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepzig.errors import CheckpointError, shown

GROUP_SIZES = (32, 64, 128)
CHANNEL = 0  # group size that stands for one scale a row
DEFAULT_BLOCK = (128, 128)
FP8_BLOCK = 128  # rows and columns that share a scale in what deepzig writes
SUPPORTED = "fp8 in blocks (DeepSeek), int8 in blocks, and symmetric int4 or int8 of compressed-tensors"
_BLOCK_METHODS = {"fp8": "fp8", "blockwise_int8": "int8"}  # quant_method -> format of Weight
_FORMATS = (None, "dense", "pack-quantized", "int-quantized", "naive-quantized", "mixed-precision")


class Scheme(NamedTuple):
    """How a matrix is stored."""

    format: str  # of Weight, or "" to leave the matrix as it is
    group_size: int = CHANNEL  # columns that share a scale in int8 and int4; CHANNEL: one scale a row

    @property
    def bits(self) -> int:
        """Bits of an integer in int8 or int4."""
        return int(self.format.removeprefix("int"))


KEEP = Scheme("")


@dataclass(frozen=True)
class Declared:
    """A supported `quantization_config`.

    block_format  "fp8" or "int8" where weights have a scale for each `block`, else ""
    block         rows and columns that share a scale
    integers      of compressed-tensors weights
    """

    method: str
    block_format: str = ""
    block: tuple[int, int] = DEFAULT_BLOCK
    integers: frozenset[Scheme] = frozenset()

    def allows_integers(self, scheme: Scheme, n_columns: int) -> bool:
        """Whether weights of `n_columns` may be stored by `scheme`."""
        by_row = Scheme(scheme.format, CHANNEL)
        return scheme in self.integers or (scheme.group_size == n_columns and by_row in self.integers)


def declared_scheme(quantization_config: Mapping[str, Any] | None) -> Declared | None:
    """Parse `quantization_config`; None if there is none.

    Raises:
        CheckpointError: deepzig does not compute the scheme; the message names it.
    """
    if not quantization_config:
        return None
    method = quantization_config.get("quant_method")
    if isinstance(method, str) and method in _BLOCK_METHODS:
        return _declared_blocks(method, quantization_config)
    if method == "w8a8_int8":  # SGLang's name for int8 with a scale a row, stored as int-quantized
        return Declared(method, integers=frozenset({Scheme("int8", CHANNEL)}))
    if method == "compressed-tensors":
        return Declared(method, integers=_declared_integers(quantization_config))
    if method is None and {"bits", "group_size"} <= quantization_config.keys():
        raise _refused("MLX's quantisation (bits and group_size, no quant_method)")
    raise _refused(f"quant_method {shown(method)}")


def packed_words(n_columns: int, bits: int) -> int:
    """32-bit words of a row of integers in weight_packed."""
    return -(-n_columns // (32 // bits))


def _refused(scheme: str) -> CheckpointError:
    return CheckpointError(f"config.json declares {scheme}, which is not supported; deepzig reads {SUPPORTED}")


def _declared_blocks(method: str, config: Mapping[str, Any]) -> Declared:
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _refused(f"{method} with fmt {shown(config['fmt'])}")
    # AutoFP8 names no blocks, and has one of these
    is_by_tensor = "ignored_layers" in config or config.get("activation_scheme") == "static"
    block = config.get("weight_block_size", None if is_by_tensor else DEFAULT_BLOCK)
    if block is None:
        raise _refused(f"{method} with one scale a tensor (no weight_block_size)")
    sizes = tuple(block) if isinstance(block, list | tuple) else ()
    if len(sizes) != 2 or not all(type(size) is int and 1 <= size <= 1 << 16 for size in sizes):
        raise CheckpointError(f"weight_block_size {shown(block)} of config.json is no pair of sizes; fetch it again")
    return Declared(method, _BLOCK_METHODS[method], (sizes[0], sizes[1]))


def _declared_integers(config: Mapping[str, Any]) -> frozenset[Scheme]:
    """The schemes of all config groups of compressed-tensors (`QuantizationArgs` there)."""
    _check_storage_format(config)
    if config.get("transform_config"):
        raise _refused("compressed-tensors with transform_config (rotated weights)")
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format") not in (None, "dense"):
        raise _refused("compressed-tensors with sparse weights")
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise CheckpointError("config_groups of config.json is no object; fetch it again")
    integers = set()
    for group in groups.values():
        if not isinstance(group, Mapping):
            raise CheckpointError("a config group of config.json is no object; fetch it again")
        _check_storage_format(group)
        if group.get("weights") is not None:
            integers.add(declared_integer(group["weights"]))
    return frozenset(integers)


def _check_storage_format(config: Mapping[str, Any]) -> None:
    if config.get("format") not in _FORMATS:
        raise _refused(f"compressed-tensors {shown(config['format'])}")


def declared_integer(weights: Any) -> Scheme:
    """The scheme of one config group. A missing strategy follows from group_size, as in compressed-tensors."""
    if not isinstance(weights, Mapping):
        raise CheckpointError("weights of a config group of config.json is no object; fetch it again")
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    if kind != "int" or type(bits) is not int or bits not in (4, 8):
        raise _refused(f"compressed-tensors weights of type {shown(kind)} with {shown(bits)} bits")
    if weights.get("symmetric", True) is not True:
        raise _refused("compressed-tensors with asymmetric weights (zero points)")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise _refused("compressed-tensors with activation-ordered groups (actorder)")
    group_size = weights.get("group_size")
    inferred = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    strategy = weights.get("strategy") or inferred
    if strategy == "channel":
        return Scheme(f"int{bits}", CHANNEL)
    if strategy != "group":
        raise _refused(f"compressed-tensors weights with strategy {shown(strategy)}")
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise _refused(f"compressed-tensors weights in groups of {shown(group_size)}, not {GROUP_SIZES} or a row")
    return Scheme(f"int{bits}", group_size)
