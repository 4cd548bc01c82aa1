"""Weight formats: which tensors of a module make a `Weight`, and back; exact decoding to f32.

Called by `loader`, the converter and the bench; calls `schemes` and `rounding` (whose quantise functions belong to this
file's interface). Knows tensors, not files or models. The tensors decide the format, the config must not contradict.

    stored as                                                          Weight
    weight F32, F16, BF16                                              f32, f16, bf16
    weight F8_E4M3 or I8, weight_scale_inv (ceil N/128, ceil K/128)    fp8, int8 with block_rows 128
    weight_packed I32 (N, ceil K/8), value + 8 in bits 4i of a word,   int4
      weight_scale (N, K/G), weight_shape [2]
    weight_packed I32 (N, ceil K/4), value + 128 in bits 8i, the same  int8, offset 128
    weight I8, weight_scale (N, K/G)                                   int8, offset 0

The first two are DeepSeek's (README_WEIGHTS.md of DeepSeek-V3), the others compressed-tensors' pack-quantized and
int-quantized. A scale is F32, F16 or BF16 and multiplies; G is 32, 64, 128 or K.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np

from deepzig._kernels.weight import Weight
from deepzig.checkpoint.reader import DTYPE_NAMES, DTYPES, TensorInfo
from deepzig.checkpoint.rounding import cast, group_size_for, quantize_fp8, quantize_int4, quantize_int8
from deepzig.checkpoint.schemes import DEFAULT_BLOCK, GROUP_SIZES, SUPPORTED, Declared
from deepzig.errors import CheckpointError, shown

__all__ = [
    "Fault",
    "Layout",
    "cast",
    "decode_vector",
    "dequantize",
    "find_faults",
    "group_size_for",
    "make_weight",
    "quantize_fp8",
    "quantize_int4",
    "quantize_int8",
    "recognise",
    "tensors_from_weight",
    "weight_from_tensors",
]

FLOAT_FORMAT = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # stored dtype -> format of Weight or of its scale
FLOATS = tuple(FLOAT_FORMAT)
_CODES_VIEW = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}
_FOREIGN = {  # suffix of a tensor that gives a scheme away
    "qweight": "AWQ or GPTQ",
    "qzeros": "AWQ or GPTQ",
    "scales": "AWQ or GPTQ",
    "g_idx": "GPTQ",
    "weight_zero_point": "asymmetric quantisation",
    "weight_g_idx": "activation-ordered groups (actorder)",
    "weight_global_scale": "nvfp4",
    "weight_scale_2": "nvfp4",
    "bitmask": "sparse weights",
}
_FP8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)  # f32 (256,)


class Requirement(NamedTuple):
    """What a tensor must be."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a module's weight (N, K) is stored, as far as names, dtypes and shapes tell."""

    format: str  # of Weight
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


# ---- from tensors to Weight -----------------------------------------------------------------------------------------


def recognise(
    module: str, shape: tuple[int, int], stored: Mapping[str, TensorInfo], declared: Declared | None = None
) -> Layout:
    """Tell from the tensors `stored` under `module` (by suffix) how its weight is laid out; plain if none is there.

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


def make_weight(module: str, shape: tuple[int, int], layout: Layout, tensors: Mapping[str, np.ndarray]) -> Weight:
    """The Weight over `tensors` (by suffix), which have no Fault; shares their memory.

    Raises CheckpointError if weight_shape contradicts `shape`.
    """
    if "weight_shape" in layout.tensors and tuple(tensors["weight_shape"].tolist()) != shape:
        stated = shown(tensors["weight_shape"].tolist())
        raise CheckpointError(f"{shown(module)}.weight_shape says {stated}, expected {list(shape)}; fetch it again")
    codes = tensors[layout.codes].view(_CODES_VIEW.get(layout.format, np.uint8))
    if not layout.scale:
        return Weight(layout.format, shape, codes)
    scale = tensors[layout.scale]
    scale_format = FLOAT_FORMAT[DTYPE_NAMES[scale.dtype]]
    return Weight(
        layout.format,
        shape,
        codes,
        scale=scale.view(_CODES_VIEW[scale_format]),
        scale_format=scale_format,
        group_size=layout.group_size,
        block_rows=layout.block_rows,
        offset=layout.offset,
    )


def weight_from_tensors(
    module: str, shape: tuple[int, int], tensors: Mapping[str, np.ndarray], declared: Declared | None = None
) -> Weight:
    """`recognise`, `find_faults` and `make_weight` for one module; `tensors` by suffix, as `tensors_from_weight` gives.

    Raises:
        CheckpointError: unsupported scheme, or a tensor that is missing or misshapen.
    """
    stored = {suffix: TensorInfo(DTYPE_NAMES[a.dtype], a.shape, 0, a.nbytes) for suffix, a in tensors.items()}
    layout = recognise(module, shape, stored, declared)
    faults = [str(fault) for fault in find_faults(module, layout, stored)]
    if faults:
        raise CheckpointError(f"{'; '.join(faults)}; fetch the checkpoint again")
    return make_weight(module, shape, layout, tensors)


def decode_vector(tensor: np.ndarray) -> np.ndarray:
    """A norm weight or bias, f32, f16 or bf16, as f32 of the same shape."""
    return tensor.astype(np.float32)


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
    words = {bits: -(-n_columns // (32 // bits)) for bits in (4, 8)}
    fitting = [bits for bits in (4, 8) if words[bits] == width]
    expected = {bits for bits, _ in declared.integers} if declared else set()
    bits = next((bits for bits in fitting if bits in expected), (fitting or sorted(expected) or [4])[0])
    group_size, scale_shape = _groups(module, shape, stored)
    tensors = {
        "weight_packed": Requirement(("I32",), (n_rows, words[bits])),
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
        agrees = declared.allows_integers(4 if layout.format == "int4" else 8, layout.group_size, shape[1])
    if not agrees:
        found = f"{layout.format} with groups of {layout.group_size} columns"
        raise CheckpointError(
            f"{shown(module)} is stored as {found}, but quantization_config of config.json declares "
            f"{_described(declared)}; one of the two is of another checkpoint"
        )


def _described(declared: Declared) -> str:
    if declared.block_format:
        return f"{declared.method} in blocks of {declared.block[0]} x {declared.block[1]}"
    groups = [f"int{bits} {f'in groups of {size}' if size else 'by rows'}" for bits, size in sorted(declared.integers)]
    return f"{declared.method} {', '.join(groups) or 'without weights'}"


def _unsupported(module: str, scheme: str) -> CheckpointError:
    return CheckpointError(f"{shown(module)} is stored with {scheme}, not supported; deepzig reads {SUPPORTED}")


# ---- from Weight to tensors and values ------------------------------------------------------------------------------


def tensors_from_weight(weight: Weight) -> dict[str, np.ndarray]:
    """The tensors, by suffix, that store `weight`; they share its memory. The inverse of `weight_from_tensors`."""
    if weight.format in ("f32", "f16", "bf16"):
        return {"weight": weight.codes.view(DTYPES[weight.format.upper()])}
    if weight.scale is None:
        raise ValueError(f"a {weight.format} weight without scales cannot be stored")
    scale = weight.scale.view(DTYPES[weight.scale_format.upper()])
    if weight.format == "fp8":
        return {"weight": weight.codes.view(DTYPES["F8_E4M3"]), "weight_scale_inv": scale}
    if weight.format == "int8" and weight.offset == 0:
        scale_name = "weight_scale" if weight.block_rows == 1 else "weight_scale_inv"
        return {"weight": weight.codes.view(np.int8), scale_name: scale}
    shape = np.array(weight.shape, dtype=np.int64)
    return {"weight_packed": weight.codes.view(np.int32), "weight_scale": scale, "weight_shape": shape}


def dequantize(weight: Weight, rows: slice | None = None) -> np.ndarray:
    """W[rows] as f32 (n, K), exact: one rounding, that of value times scale.

    `rows` has step 1; default all. The oracle of the kernels, and how the converter reads quantised sources.
    """
    n_rows, n_columns = weight.shape
    start, stop, step = (rows or slice(None)).indices(n_rows)
    if step != 1:
        raise ValueError("rows to dequantise must be contiguous")
    stop = max(stop, start)
    values = _values(weight, weight.codes[start:stop])
    if weight.scale is None:
        return values
    blocks = np.arange(start, stop) // weight.block_rows
    scale = _floats(weight.scale[blocks], weight.scale_format)  # f32 (n, ceil(K / G))
    values *= np.repeat(scale, weight.group_size, axis=1)[:, :n_columns]
    return values


def _values(weight: Weight, codes: np.ndarray) -> np.ndarray:
    """f32 (n, K) before scaling, freshly allocated."""
    n_columns = weight.shape[1]
    if weight.format == "fp8":
        return _FP8_VALUES[codes[:, :n_columns]]
    if weight.format == "int8":
        signed = codes[:, :n_columns] ^ np.uint8(weight.offset)  # offset 128 flips the sign bit, which subtracts it
        return signed.view(np.int8).astype(np.float32)
    if weight.format == "int4":
        nibbles = np.empty((codes.shape[0], 2 * codes.shape[1]), dtype=np.float32)
        nibbles[:, 0::2] = codes & 15
        nibbles[:, 1::2] = codes >> 4
        return np.ascontiguousarray(nibbles[:, :n_columns]) - np.float32(8)
    return _floats(codes[:, :n_columns], weight.format)


def _floats(stored: np.ndarray, name: str) -> np.ndarray:
    """f32 of f32 values, or of the bits of f16 or bf16; a copy."""
    if name == "bf16":
        bits = stored.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return (stored.view(np.float16) if name == "f16" else stored).astype(np.float32)
