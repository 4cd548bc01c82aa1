"""Weight formats: which tensors of a module make a `Weight`.

Called by `loader`; calls `schemes`. Knows tensors, not files or models. The tensors decide the format, and the config
must not contradict them.

    stored as                                                          Weight
    weight F32, F16, BF16                                              f32, f16, bf16
    weight F8_E4M3 or I8, weight_scale_inv (ceil N/128, ceil K/128)    fp8, int8 with block_rows 128
    weight_packed I32 (N, ceil K/8), value + 8 in bits 4i of a word,   int4
      weight_scale (N, K/G), weight_shape [2]
    weight_packed I32 (N, ceil K/4), value + 128 in bits 8i, the same  int8, offset 128
    weight I8, weight_scale (N, K/G)                                   int8, offset 0

The first two are DeepSeek's (README_WEIGHTS.md of DeepSeek-V3), the others compressed-tensors' pack-quantized and
int-quantized. A scale is F32, F16 or BF16 and multiplies; G is 32, 64, 128 or K. weight_shape is not read: N and K
follow from config.json, and each of these tensors would cost a read of the disk. `verify` compares them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepzig._kernels.weight import CODES_DTYPE, Weight
from deepzig.checkpoint.reader import DTYPE_NAMES, TensorInfo
from deepzig.checkpoint.schemes import DEFAULT_BLOCK, GROUP_SIZES, SUPPORTED, Declared, Scheme, packed_words
from deepzig.errors import CheckpointError, shown

FLOAT_FORMAT = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # stored dtype -> format of Weight or of its scale
FLOATS = tuple(FLOAT_FORMAT)
_FOREIGN = {  # suffix of a tensor that gives a scheme away
    "qweight": "AWQ or GPTQ",
    "qzeros": "AWQ or GPTQ",
    "biases": "MLX's quantisation",  # before scales, which it has too
    "scales": "AWQ or GPTQ",
    "g_idx": "GPTQ",
    "weight_zero_point": "asymmetric quantisation",
    "weight_g_idx": "activation-ordered groups (actorder)",
    "weight_global_scale": "nvfp4",
    "weight_scale_2": "nvfp4",
    "bitmask": "sparse weights",
}


class Requirement(NamedTuple):
    """What a tensor must be."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a module's weight (N, K) is stored, as far as names, dtypes and shapes tell."""

    format: str  # as in Weight
    codes: str  # suffix of the tensor of codes
    tensors: dict[str, Requirement]  # suffix -> what it must be
    scale: str = ""  # suffix of the scales
    group_size: int = 0
    block_rows: int = 1
    offset: int = 0


class Fault(NamedTuple):
    """A tensor that is missing or is not what the config asks for."""

    name: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.found}, expected {self.expected}"


def recognise(
    module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo], declared: Declared | None = None
) -> Layout:
    """Tell from the tensors `stored` under `module` (by suffix) how its weight is laid out; plain if there are none.

    Raises:
        CheckpointError: they belong to a scheme that deepzig does not compute, or that config.json does not declare.
    """
    for suffix, scheme in _FOREIGN.items():
        if suffix in stored:
            raise _unsupported(module, f"{scheme} (tensor {suffix})")
    if "weight_packed" in stored or ("weight" not in stored and "weight_shape" in stored):
        layout = _recognise_packed(module, shape, stored, declared)
    elif "weight" not in stored or stored["weight"].dtype not in ("F8_E4M3", "I8"):
        if "weight" in stored and ("weight_scale" in stored or "weight_scale_inv" in stored):
            raise _unsupported(module, f"a {stored['weight'].dtype} weight with scales")
        return _plain(shape, stored)
    elif stored["weight"].dtype == "F8_E4M3" or "weight_scale_inv" in stored:
        layout = _recognise_blocks(module, shape, stored, declared)
    else:
        layout = _recognise_int8(module, shape, stored)
    if declared is not None and layout.scale in stored:
        _check_declared(module, shape, layout, declared)
    return layout


def find_faults(module: str, layout: Layout, stored: Mapping[str, TensorInfo]) -> Iterator[Fault]:
    """Each tensor of `layout` that is missing or has another dtype or shape."""
    for suffix, (dtypes, shape) in layout.tensors.items():
        yield from find_fault(f"{module}.{suffix}", stored.get(suffix), dtypes, shape)


def find_fault(name: str, info: TensorInfo | None, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[Fault]:
    """At most one Fault of the tensor `name`."""
    if info is None:
        yield Fault(name, "is missing", f"shape {shape}")
    elif info.shape != shape:
        yield Fault(name, f"has shape {shown(info.shape)}", str(shape))
    elif info.dtype not in dtypes:
        yield Fault(name, f"has dtype {info.dtype}", " or ".join(dtypes))


def make_weight(shape: tuple[int, int], layout: Layout, tensors: Mapping[str, np.ndarray]) -> Weight:
    """The Weight over codes and scales of `tensors` (by suffix), which have no Fault; shares their memory."""
    codes = tensors[layout.codes].view(CODES_DTYPE[layout.format])
    if not layout.scale:
        return Weight(layout.format, shape, codes)
    scale = tensors[layout.scale]
    scale_format = FLOAT_FORMAT[DTYPE_NAMES[scale.dtype]]
    return Weight(
        layout.format,
        shape,
        codes,
        scale=scale.view(CODES_DTYPE[scale_format]),
        scale_format=scale_format,
        group_size=layout.group_size,
        block_rows=layout.block_rows,
        offset=layout.offset,
    )


def _plain(shape: tuple[int, int], stored: Mapping[str, TensorInfo]) -> Layout:
    dtype = stored["weight"].dtype if "weight" in stored else ""
    return Layout(FLOAT_FORMAT.get(dtype, "f32"), "weight", {"weight": Requirement(FLOATS, shape)})


def _recognise_packed(
    module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo], declared: Declared | None
) -> Layout:
    """compressed-tensors pack-quantized: rows of 32-bit words, the last one padded."""
    n_rows, n_columns = shape
    packed = stored.get("weight_packed")
    if packed is not None and packed.dtype == "U8":
        raise _unsupported(module, "4-bit floats (weight_packed of bytes: nvfp4 or mxfp4)")
    width = packed.shape[-1] if packed is not None and packed.shape else 0
    fitting = [bits for bits in (4, 8) if packed_words(n_columns, bits) == width]
    expected = {scheme.bits for scheme in declared.integers} if declared else set()
    bits = next((bits for bits in fitting if bits in expected), (fitting or sorted(expected) or [4])[0])
    group_size, scale_shape = _groups(module, shape, stored)
    tensors = {
        "weight_packed": Requirement(("I32",), (n_rows, packed_words(n_columns, bits))),
        "weight_scale": Requirement(FLOATS, scale_shape),
        "weight_shape": Requirement(("I64", "I32"), (2,)),
    }
    offset = 128 if bits == 8 else 0
    return Layout(f"int{bits}", "weight_packed", tensors, "weight_scale", group_size, offset=offset)


def _recognise_blocks(
    module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo], declared: Declared | None
) -> Layout:
    """DeepSeek's fp8, and int8 in the same layout: a scale for each block of `weight_block_size`."""
    dtype = stored["weight"].dtype
    scale = stored.get("weight_scale_inv")
    if scale is None and "weight_scale" in stored:
        raise _unsupported(module, "float-quantized (an fp8 weight with weight_scale)")
    if scale is not None and scale.shape in ((), (1,)) and shape != (1, 1):
        raise _unsupported(module, f"{dtype} with one scale for the whole tensor")
    block_rows, block_columns = declared.block if declared else DEFAULT_BLOCK
    scale_shape = (-(-shape[0] // block_rows), -(-shape[1] // block_columns))
    tensors = {"weight": Requirement((dtype,), shape), "weight_scale_inv": Requirement(FLOATS, scale_shape)}
    name = "fp8" if dtype == "F8_E4M3" else "int8"
    return Layout(name, "weight", tensors, "weight_scale_inv", block_columns, block_rows)


def _recognise_int8(module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo]) -> Layout:
    """compressed-tensors int-quantized."""
    group_size, scale_shape = _groups(module, shape, stored)
    tensors = {"weight": Requirement(("I8",), shape), "weight_scale": Requirement(FLOATS, scale_shape)}
    return Layout("int8", "weight", tensors, "weight_scale", group_size)


def _groups(module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo]) -> tuple[int, tuple[int, int]]:
    """Group size, from the number of scales a row, and the shape that weight_scale must have."""
    n_rows, n_columns = shape
    scale = stored.get("weight_scale")
    if scale is None:
        return n_columns, (n_rows, 1)
    if scale.shape in ((), (1,)) and n_rows > 1:
        raise _unsupported(module, "integers with one scale for the whole tensor")
    n_groups = scale.shape[1] if len(scale.shape) == 2 else 1
    if n_groups <= 1:
        return n_columns, (n_rows, 1)
    if n_columns % n_groups == 0 and n_columns // n_groups in GROUP_SIZES:
        return n_columns // n_groups, (n_rows, n_groups)
    if n_columns % n_groups == 0 and scale.shape[0] == n_rows:
        raise _unsupported(module, f"groups of {n_columns // n_groups} columns")
    nearest = min(GROUP_SIZES, key=lambda size: abs(n_columns / size - n_groups))
    return nearest, (n_rows, -(-n_columns // nearest))


def _check_declared(module: str, shape: tuple[int, int], layout: Layout, declared: Declared) -> None:
    if layout.scale == "weight_scale_inv":
        agrees = declared.block_format == layout.format
    else:
        agrees = declared.allows_integers(Scheme(layout.format, layout.group_size), shape[1])
    if not agrees:
        found = f"{layout.format} with groups of {layout.group_size} columns"
        raise CheckpointError(
            f"{shown(module)} is stored as {found}, but quantization_config of config.json declares "
            f"{_described(declared)}; one of the two is of another checkpoint"
        )


def _described(declared: Declared) -> str:
    if declared.block_format:
        return f"{declared.method} in blocks of {declared.block[0]} x {declared.block[1]}"
    groups = [f"{name} {f'in groups of {size}' if size else 'by rows'}" for name, size in sorted(declared.integers)]
    return f"{declared.method} {', '.join(groups) or 'without weights'}"


def _unsupported(module: str, scheme: str) -> CheckpointError:
    return CheckpointError(f"{shown(module)} is stored with {scheme}, not supported; deepzig reads {SUPPORTED}")
