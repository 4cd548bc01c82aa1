"""Rotary position embedding: cos and sin of every position, with YaRN (HF modeling_rope_utils, arXiv 2309.00071).

Called by `deepseek`; `attention` gets slices of the tables. Knows only the config.
"""

import math

import numpy as np

from deepzig.config import ModelConfig, RopeParameters


def inverse_frequencies(rope: RopeParameters, dim: int) -> np.ndarray:
    """f32 (dim / 2,): angle a position, for each pair. YaRN blends interpolated and original frequencies."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # NumPy's float32 power is off by some last bits, which position 163839 makes an angle of 0.01; torch's is not
    position_frequency = np.power(np.float64(rope.rope_theta), exponent.astype(np.float64)).astype(np.float32)
    original = np.float32(1) / position_frequency
    if rope.rope_type == "default":
        return original
    interpolated = np.float32(1) / (np.float32(rope.factor) * position_frequency)
    low, high = _correction_range(rope, dim)
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1) - np.clip(ramp, 0, 1)  # share of the original frequency
    return interpolated * (np.float32(1) - kept) + original * kept


def _correction_range(rope: RopeParameters, dim: int) -> tuple[float, float]:
    """Pairs that turn beta_fast, beta_slow times within the original context (YaRN section 3.2, r(d) solved for d)."""

    def pair_of(rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.rope_theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


class RotaryEmbedding:
    """Tables of cos and sin that grow with the longest position asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self._inverse_frequencies = inverse_frequencies(config.rope, config.qk_rope_head_dim)
        self._factor = np.float32(config.rope.cos_sin_factor)
        self._cos = np.empty((0, len(self._inverse_frequencies)), np.float32)
        self._sin = self._cos

    def cos_sin(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions i32 (T,) -> cos, sin, each f32 (T, P / 2), already times YaRN's factor."""
        longest = int(positions.max()) + 1
        if longest > len(self._cos):
            self._grow(max(longest, 2 * len(self._cos), 256))
        return self._cos[positions], self._sin[positions]

    def rotation(self, old_positions: np.ndarray, new_positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, each f32 (T, P / 2), that rotate rows of old_positions i32 (T,) to new_positions.

        The angle is the difference of the very angles of the tables, so that no error grows with the position. YaRN's
        factor is left out: it is in the rows already.
        """
        new, old = (self._angles(positions).astype(np.float64) for positions in (new_positions, old_positions))
        return np.cos(new - old).astype(np.float32), np.sin(new - old).astype(np.float32)

    def _grow(self, length: int) -> None:
        angles = self._angles(np.arange(length))
        self._cos = np.cos(angles) * self._factor
        self._sin = np.sin(angles) * self._factor

    def _angles(self, positions: np.ndarray) -> np.ndarray:
        """positions int (T,) -> f32 (T, P / 2)."""
        return positions.astype(np.float32)[:, None] * self._inverse_frequencies
