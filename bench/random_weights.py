"""Random weights in every format, made fast: windows of a few thousand rows, quantised once for each width and format.

Called by `synthetic` and `gguf_file` for checkpoints and by `kernel_cases` for single weights; calls
`reference_rounding` and `weight_tensors`. Knows no models.
"""

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bench.reference_rounding import group_size_for, plain_weight, quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import tensors_from_weight, weight_from_tensors
from deepzig._kernels.weight import Weight

N_ROWS = 2048  # random rows of a width; every weight is a window of them, wrapped round
WINDOW_STEP = 128  # windows start at multiples: fp8 shares a scale among so many rows
INT4_GROUP = 64

Scheme = tuple[str, int]  # format of Weight, group size of integers (else 0)


def scheme_for(name: str, n_columns: int) -> Scheme:
    """How deepzig stores a weight of K columns in the format `name`."""
    if name == "int8":
        return name, group_size_for(n_columns)
    return name, INT4_GROUP if name == "int4" else 0


@dataclass(frozen=True)
class Window:
    """`n_rows` rows of `rows` from `first` on, wrapped round at its end."""

    rows: np.ndarray
    first: int
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (self.n_rows, *self.rows.shape[1:])

    def chunks(self) -> Iterator[np.ndarray]:
        """The rows, piece by piece, without a copy."""
        left, first = self.n_rows, self.first
        while left > 0:
            chunk = self.rows[first : first + left]
            yield chunk
            left, first = left - len(chunk), 0

    def array(self) -> np.ndarray:
        """The rows as one array."""
        return np.concatenate(list(self.chunks()))


@functools.cache
def random_rows(n_columns: int, is_embedding: bool) -> np.ndarray:
    """f32 (N_ROWS, K) of variance 1 / K; embeddings of variance 1, so that tokens go to different experts."""
    values = np.random.default_rng([n_columns, is_embedding]).standard_normal((N_ROWS, n_columns), np.float32)
    if not is_embedding:
        values *= np.float32(n_columns**-0.5)
    return values


def is_embedding(module: str) -> bool:
    """Whether rows of the module are looked up rather than multiplied with."""
    return module.endswith("embed_tokens")


def window(module: str, rows: np.ndarray, n_rows: int) -> Window:
    """The window of the weight `module` with n_rows rows, on `rows` that stand for N_ROWS of them."""
    first = zlib.crc32(module.encode()) % N_ROWS // WINDOW_STEP * WINDOW_STEP
    return Window(rows, first * len(rows) // N_ROWS, -(-n_rows * len(rows) // N_ROWS))


class RandomWeights:
    """Weights by name: the same name, shape and scheme give the same weight."""

    def __init__(self) -> None:
        self._quantized: dict[tuple[int, Scheme, bool], dict[str, np.ndarray]] = {}

    def tensors(self, module: str, shape: tuple[int, int], scheme: Scheme) -> dict[str, Window]:
        """The tensors, by suffix, that store the weight (N, K) of `module`."""
        key = shape[1], scheme, is_embedding(module)
        if key not in self._quantized:
            self._quantized[key] = tensors_from_weight(_quantize(random_rows(key[0], key[2]), scheme))
        return {
            suffix: Window(np.array(shape, np.int64), 0, 2)
            if suffix == "weight_shape"
            else window(module, rows, shape[0])
            for suffix, rows in self._quantized[key].items()
        }

    def weight(self, module: str, shape: tuple[int, int], scheme: Scheme) -> Weight:
        """The weight in memory of its own."""
        tensors = {suffix: tensor.array() for suffix, tensor in self.tensors(module, shape, scheme).items()}
        return weight_from_tensors(module, shape, tensors)


def _quantize(values: np.ndarray, scheme: Scheme) -> Weight:
    name, group_size = scheme
    quantizers: dict[str, Callable[[], Weight]] = {
        "f32": lambda: plain_weight(values, "f32"),
        "f16": lambda: plain_weight(values, "f16"),
        "bf16": lambda: plain_weight(values, "bf16"),
        "fp8": lambda: quantize_fp8(values),
        "int8": lambda: quantize_int8(values, group_size),
        "int4": lambda: quantize_int4(values, group_size),
    }
    return quantizers[name]()
