"""What the layers of a forward pass share: the new tokens, and preallocated arrays, one set for each number of rows.

Made by `deepseek`, used by all of `model`, read by the observers of a step in `engine` and `evaluate`. What one layer
leaves for another is here or in the latent cache, each array with its shape.
"""

import math
from dataclasses import dataclass

import numpy as np

from deepzig._kernels.experts import scratch_size as expert_scratch_size
from deepzig._kernels.mla_decode import scratch_size as mla_scratch_size
from deepzig.config import ModelConfig
from deepzig.model.cache import LatentCache, Rows

MLA_SCRATCH = 1 << 24  # floats: a prompt's rows all at once would ask for gigabytes at a long context
CACHE_LINE = 64  # bytes, as many as a vector of AVX512


def aligned_floats(*shape: int) -> np.ndarray:
    """f32 of `shape`, not cleared, beginning with a cache line. NumPy aligns to 16 bytes: a row's vectors may then lie
    in two lines each, which costs products of fp8 weights with four rows a quarter of their speed on AVX512."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + CACHE_LINE, np.uint8)
    begin = -memory.ctypes.data % CACHE_LINE
    return memory[begin : begin + size].view(np.float32).reshape(shape)


class AttentionScratch:
    """What attention computes with: one for all workspaces of a model, since many of them are kept."""

    def __init__(self, config: ModelConfig) -> None:
        self._heads, self._rank = config.num_attention_heads, config.kv_lora_rank
        self._floats = aligned_floats(0)
        self._kv = aligned_floats(0, config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim))

    def keys_and_values(self, n_rows: int) -> np.ndarray:
        """f32 (n_rows, H (N + V)), kept from tile to tile: V3's 67 MB would be cleared by the system each time."""
        if n_rows > len(self._kv):
            self._kv = aligned_floats(n_rows, self._kv.shape[1])
        return self._kv[:n_rows]

    def for_decoding(self, n_rows: int, longest: int) -> tuple[int, np.ndarray]:
        """How many of n_rows `mla_decode` is to take at a time, with at most `longest` cached rows, and f32 scratch for
        them, which grows by doubling."""
        of_a_row = mla_scratch_size(1, self._heads, self._rank, longest)
        at_a_time = min(n_rows, max(1, MLA_SCRATCH // of_a_row))
        needed = at_a_time * of_a_row
        if needed > self._floats.size:
            self._floats = aligned_floats(max(needed, min(2 * needed, MLA_SCRATCH)))
        return at_a_time, self._floats


class Workspace:
    """Arrays for steps of n_rows new tokens."""

    def __init__(self, config: ModelConfig, n_rows: int, attention_scratch: AttentionScratch) -> None:
        def floats(*shape: int) -> np.ndarray:
            array = aligned_floats(*shape)
            self.nbytes += array.nbytes
            return array

        heads, rank = config.num_attention_heads, config.kv_lora_rank
        shared = config.n_shared_experts * config.moe_intermediate_size
        dense = config.intermediate_size
        self.nbytes = 0  # of all arrays of floats, in proportion to n_rows
        self.attention_scratch = attention_scratch  # shared with other workspaces
        self.hidden = floats(n_rows, config.hidden_size)  # (T, D) residual stream
        self.normed = floats(n_rows, config.hidden_size)  # (T, D)
        self.sublayer_out = floats(n_rows, config.hidden_size)  # (T, D) output of attention or MLP
        self.q_a = floats(n_rows, config.q_lora_rank or 0)  # (T, q_lora_rank)
        self.q = floats(n_rows, heads, config.qk_head_dim)  # (T, H, N + P)
        self.q_flat = self.q.reshape(n_rows, -1)  # (T, H (N + P)), a view as the next two
        self.q_nope, self.q_pe = np.split(self.q, [config.qk_nope_head_dim], axis=2)  # (T, H, N), (T, H, P)
        self.latent = floats(n_rows, config.latent_dim)  # (T, R + P)
        self.c_kv = self.latent[:, :rank]  # (T, R), a view as the next
        self.k_pe = self.latent[:, None, rank:]  # (T, 1, P)
        self.q_latent = floats(n_rows, heads, config.latent_dim)  # (T, H, R + P), absorbed form
        self.q_latent_nope, self.q_latent_pe = np.split(self.q_latent, [rank], axis=2)  # (T, H, R), (T, H, P), views
        self.o_latent = floats(n_rows, heads, rank)  # (T, H, R), absorbed form
        self.o = floats(n_rows, heads, config.v_head_dim)  # (T, H, V)
        self.o_flat = self.o.reshape(n_rows, -1)  # (T, H V), a view
        self.gate = floats(n_rows, max(dense, shared))  # (T, I) dense MLP or shared experts
        self.up = floats(n_rows, max(dense, shared))  # (T, I)
        self.shared_out = floats(n_rows, config.hidden_size)  # (T, D)
        self.router_logits = floats(n_rows, config.n_routed_experts)  # (T, E)
        self.topk_idx = np.empty((n_rows, config.num_experts_per_tok), np.int32)  # (T, K)
        self.topk_weight = floats(n_rows, config.num_experts_per_tok)  # (T, K)
        self.expert_scratch = floats(
            expert_scratch_size(n_rows, config.num_experts_per_tok, config.hidden_size, config.moe_intermediate_size)
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass, as every layer sees it."""

    rows: Rows
    cos: np.ndarray  # f32 (T, P / 2), of the rows' positions
    sin: np.ndarray  # f32 (T, P / 2)
    form: str  # of attention, "absorbed" or "expanded"
    arithmetic: int  # of products, DECODING, EXACT or FAST (`_kernels.linear`)
    cache: LatentCache
    space: Workspace
