"""What the tests of the kernels that multiply have in common, beyond `agreement`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.dequantize import reference as dequantize_reference
from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

from . import agreement


def mapped_weights(rng: np.random.Generator, shape: tuple[int, int], directory: Path) -> Iterator[Weight]:
    """`random_weights` in read-only memory maps, the scales too."""
    for number, weight in enumerate(random_weights(rng, shape)):
        codes = agreement.map_read_only(weight.codes, directory / f"codes{number}")
        scale = (
            weight.scale
            if weight.scale is None
            else agreement.map_read_only(weight.scale, directory / f"scale{number}")
        )
        geometry = weight.group_size, weight.block_rows, weight.offset
        yield Weight(weight.format, shape, codes, scale, weight.scale_format, *geometry)


def decoded(weight: Weight) -> np.ndarray:
    """f64 (N, K)."""
    out = np.empty(weight.shape, np.float32)
    dequantize_reference(weight, all_rows(weight), out, n_threads=1)
    return out.astype(np.float64)
