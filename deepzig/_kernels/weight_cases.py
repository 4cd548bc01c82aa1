"""Random weights in every format, for the test cases of the kernels that take one."""

from collections.abc import Iterator

import numpy as np

from deepzig._kernels.weight import Weight


def _scale(rng: np.random.Generator, shape: tuple[int, int], scale_format: str) -> np.ndarray:
    """Positive scales of order 1e-2: f32, or the bits of f16 / bf16 as u16."""
    values = (rng.random(shape, np.float32) + np.float32(0.5)) * np.float32(0.01)
    if scale_format == "f32":
        return values
    if scale_format == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _scaled(rng: np.random.Generator, weight_format: str, shape: tuple[int, int], scale_format: str, group_size: int,
            block_rows: int = 1, offset: int = 0) -> Weight:  # fmt: skip
    n_rows, n_columns = shape
    stored = (n_columns + 7) // 8 * 4 if weight_format == "int4" else n_columns
    codes = rng.integers(0, 256, (n_rows, stored), np.uint8)
    if weight_format == "fp8":
        codes[(codes & 0x7F) == 0x7F] = 0x01  # no NaN here; the smallest subnormal instead
    groups = (-(-n_rows // block_rows), -(-n_columns // group_size))
    return Weight(
        weight_format, shape, codes, _scale(rng, groups, scale_format), scale_format, group_size, block_rows, offset
    )


def random_weights(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Weight]:
    """One weight of `shape` (N, K) for each way to store it."""
    values = rng.standard_normal(shape, np.float32) * np.float32(0.1)
    yield Weight("f32", shape, values)
    yield Weight("f16", shape, values.astype(np.float16).view(np.uint16))
    yield Weight("bf16", shape, np.ascontiguousarray(values.view(np.uint16).reshape(*shape, 2)[:, :, 1]))
    yield _scaled(rng, "fp8", shape, "f32", 128, block_rows=128)
    yield _scaled(rng, "int8", shape, "bf16", 32, offset=128)
    yield _scaled(rng, "int8", shape, "bf16", 128, offset=128)
    yield _scaled(rng, "int8", shape, "f32", shape[1])
    yield _scaled(rng, "int8", shape, "f32", 128, block_rows=128)
    yield _scaled(rng, "int4", shape, "bf16", 32)
    yield _scaled(rng, "int4", shape, "f16", 64)
    yield _scaled(rng, "int4", shape, "bf16", 128)
