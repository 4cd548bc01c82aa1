"""The matrix that linear kernels multiply with, in the form in which it lies in the checkpoint.

Made by `checkpoint.formats` from memory-mapped tensors, held by `model`, read by the kernels. Knows nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FORMATS = ("f32", "f16", "bf16", "fp8", "int8", "int4")
FORMAT_CODE = {name: code for code, name in enumerate(FORMATS)}
SCALE_CODE = {"none": 0, "f32": 1, "f16": 2, "bf16": 3}
PLAIN = ("f32", "f16", "bf16")  # without a scale
# The arithmetic of a step, as `linear` has it. FAST and EXACT are also how many bf16 terms hold that much of a float.
DECODING, FAST, EXACT = 0, 1, 3
CODES_DTYPE = {
    "f32": np.float32,
    "f16": np.uint16,
    "bf16": np.uint16,
    "fp8": np.uint8,
    "int8": np.uint8,
    "int4": np.uint8,
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix W (N, K), stored row-major; a linear layer computes y = x @ W.T.

    W[n, k] = value(codes[n, k]) * scale[n // block_rows, k // group_size]      (no scale: factor 1)

    format      codes                                            value
    f32         f32 (N, K)                                       itself
    f16, bf16   u16 (N, K), the bit patterns                     itself
    fp8         u8 (N, K), float8 e4m3fn                         itself
    int8        u8 (N, K)                                        int8(code - offset); offset 128 (pack-quantized) or 0
    int4        u8 (N, >= ceil(K / 2)), element 2j in the        nibble - 8
                low half of byte j
    """

    format: str
    shape: tuple[int, int]
    codes: np.ndarray  # (N, row_bytes / itemsize), C-contiguous, may be read-only
    scale: np.ndarray | None = None  # f32, or u16 bits of f16/bf16; (ceil(N / block_rows), ceil(K / group_size))
    scale_format: str = "none"  # "none", "f32", "f16", "bf16"
    group_size: int = 0  # columns that share a scale; K for one scale a row; 0 without scale
    block_rows: int = 1  # rows that share a scale
    offset: int = 0  # int8 only: 0 or 128
    descriptor: np.ndarray = field(init=False, repr=False)  # i64 (10,), what compiled kernels read: see `_describe`

    def __post_init__(self) -> None:
        n_rows, n_columns = self.shape
        if self.format not in FORMATS:
            raise ValueError(f"unknown weight format {self.format!r}")
        if self.codes.dtype != CODES_DTYPE[self.format] or self.codes.ndim != 2 or not self.codes.flags.c_contiguous:
            raise ValueError(f"codes of a {self.format} weight are {self.codes.dtype} {self.codes.shape}")
        stored_columns = (n_columns + 1) // 2 if self.format == "int4" else n_columns
        if self.codes.shape[0] != n_rows or self.codes.shape[1] < stored_columns:
            raise ValueError(f"codes of shape {self.codes.shape} cannot hold a {self.format} weight of {self.shape}")
        if n_rows < 1 or n_columns < 1:
            raise ValueError(f"a weight of shape {self.shape} has no values")
        if self.offset not in ((0, 128) if self.format == "int8" else (0,)):
            raise ValueError(f"offset {self.offset} is none of a {self.format} weight")
        if (self.scale is None) != (self.scale_format == "none") or self.scale_format not in SCALE_CODE:
            raise ValueError("scale and scale_format must be given together")
        if self.scale is not None and self.format in PLAIN:
            raise ValueError(f"a {self.format} weight has no scale")
        if self.scale is not None:
            if self.group_size < 1 or self.block_rows < 1:
                raise ValueError("a scaled weight needs group_size and block_rows of at least 1")
            expected = (-(-n_rows // self.block_rows), -(-n_columns // self.group_size))
            if self.scale.shape != expected or not self.scale.flags.c_contiguous:
                raise ValueError(f"scale has shape {self.scale.shape}, expected {expected}, C-contiguous")
            if self.scale.dtype != (np.float32 if self.scale_format == "f32" else np.uint16):
                raise ValueError(f"scale is {self.scale.dtype}, which is no {self.scale_format}")
        object.__setattr__(self, "descriptor", self._describe())

    def _describe(self) -> np.ndarray:
        """i64 (10,): addresses of codes and scale, N, K, bytes of a row of codes, format, scale format, group_size,
        block_rows, offset."""
        n_rows, n_columns = self.shape
        return np.array(
            [
                self.codes.ctypes.data,
                0 if self.scale is None else self.scale.ctypes.data,
                n_rows,
                n_columns,
                self.codes.strides[0],
                FORMAT_CODE[self.format],
                SCALE_CODE[self.scale_format],
                self.group_size or n_columns,
                self.block_rows,
                self.offset,
            ],
            dtype=np.int64,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads: codes and scales."""
        return self.codes.nbytes + (0 if self.scale is None else self.scale.nbytes)


class ExpertWeights:
    """The matrices of a layer's routed experts, and their descriptors side by side for compiled kernels.

    gate_proj, up_proj: E weights (I, D) each; down_proj: E weights (D, I).
    """

    def __init__(self, gate_proj: Sequence[Weight], up_proj: Sequence[Weight], down_proj: Sequence[Weight]) -> None:
        if not len(gate_proj) == len(up_proj) == len(down_proj) > 0:
            raise ValueError("gate_proj, up_proj and down_proj must list the same experts, at least one")
        self.gate_proj, self.up_proj, self.down_proj = list(gate_proj), list(up_proj), list(down_proj)
        intermediate, hidden = gate_proj[0].shape
        for gate, up, down in zip(gate_proj, up_proj, down_proj, strict=True):
            if gate.shape != (intermediate, hidden) or up.shape != gate.shape or down.shape != (hidden, intermediate):
                raise ValueError(f"expert shapes {gate.shape}, {up.shape}, {down.shape} do not fit together")
        self.hidden_size = hidden
        self.intermediate_size = intermediate
        self.descriptors = np.stack(
            [np.stack([w.descriptor for w in three]) for three in zip(gate_proj, up_proj, down_proj, strict=True)]
        )  # i64 (E, 3, 10)

    def __len__(self) -> int:
        return len(self.gate_proj)
