"""Weights in memory: made of tensors, taken apart into tensors, and decoded.

Called by `random_weights` and by the tests; calls `checkpoint.formats` and the reference of the kernel `dequantize`.
Knows no files.
"""

from collections.abc import Mapping

import numpy as np

from deepzig._kernels.dequantize import all_rows, reference
from deepzig._kernels.weight import Weight
from deepzig.checkpoint.formats import find_faults, make_weight, recognise
from deepzig.checkpoint.reader import DTYPE_NAMES, DTYPES, TensorInfo
from deepzig.checkpoint.schemes import Declared
from deepzig.errors import CheckpointError


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
    return make_weight(shape, layout, tensors)


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


def dequantize(weight: Weight, rows: slice = slice(None)) -> np.ndarray:
    """W[rows] as f32 (n, K), exact: one rounding, that of value times scale."""
    numbers = all_rows(weight)[rows]
    values = np.empty((len(numbers), weight.shape[1]), np.float32)
    reference(weight, numbers, values, n_threads=1)
    return values
