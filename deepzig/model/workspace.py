"""Preallocated arrays of a forward pass, one set for each number of rows. Made by `deepseek`, used by all of `model`.

All mutable state of a step beside the latent cache is here, each array with its shape.
"""

import numpy as np

from deepzig._kernels.experts import scratch_size as expert_scratch_size
from deepzig._kernels.mla_decode import scratch_size as mla_scratch_size
from deepzig.config import ModelConfig

MLA_SCRATCH = 1 << 24  # floats: a prompt's rows all at once would ask for gigabytes at a long context


class Workspace:
    """Arrays for steps of n_rows new tokens, and how activations are given to products (`_kernels.linear`)."""

    def __init__(self, config: ModelConfig, n_rows: int, bf16_terms: int) -> None:
        def floats(*shape: int) -> np.ndarray:
            return np.empty(shape, np.float32)

        heads, rank = config.num_attention_heads, config.kv_lora_rank
        shared = config.n_shared_experts * config.moe_intermediate_size
        dense = config.intermediate_size
        self.n_rows = n_rows
        self.bf16_terms = bf16_terms
        self.hidden = floats(n_rows, config.hidden_size)  # (T, D) residual stream
        self.normed = floats(n_rows, config.hidden_size)  # (T, D)
        self.branch = floats(n_rows, config.hidden_size)  # (T, D) output of attention or MLP
        self.q_a = floats(n_rows, config.q_lora_rank or 0)  # (T, q_lora_rank)
        self.q = floats(n_rows, heads, config.qk_head_dim)  # (T, H, N + P)
        self.latent = floats(n_rows, config.latent_dim)  # (T, R + P)
        self.query = floats(n_rows, heads, config.latent_dim)  # (T, H, R + P), absorbed form
        self.o_latent = floats(n_rows, heads, rank)  # (T, H, R), absorbed form
        self.o = floats(n_rows, heads, config.v_head_dim)  # (T, H, V)
        self.gate = floats(n_rows, max(dense, shared))  # (T, I) dense MLP or shared experts
        self.up = floats(n_rows, max(dense, shared))  # (T, I)
        self.shared_out = floats(n_rows, config.hidden_size)  # (T, D)
        self.router_logits = floats(n_rows, config.n_routed_experts)  # (T, E)
        self.topk_idx = np.empty((n_rows, config.num_experts_per_tok), np.int32)  # (T, K)
        self.topk_weight = floats(n_rows, config.num_experts_per_tok)  # (T, K)
        self.expert_scratch = floats(
            expert_scratch_size(n_rows, config.num_experts_per_tok, config.hidden_size, config.moe_intermediate_size)
        )
        self._config = config
        self._mla_scratch = floats(0)

    @property
    def nbytes(self) -> int:
        """Of all arrays; in proportion to n_rows until `mla_scratch` grows."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def mla_scratch(self, longest: int) -> tuple[int, np.ndarray]:
        """How many rows `mla_decode` is to take at a time, with at most `longest` cached rows, and its f32 scratch for
        them, which grows by doubling."""
        heads, rank = self._config.num_attention_heads, self._config.kv_lora_rank
        of_a_row = mla_scratch_size(1, heads, rank, longest)
        n_rows = min(self.n_rows, max(1, MLA_SCRATCH // of_a_row))
        if n_rows * of_a_row > self._mla_scratch.size:
            self._mla_scratch = np.empty(max(n_rows * of_a_row, min(2 * n_rows * of_a_row, MLA_SCRATCH)), np.float32)
        return n_rows, self._mla_scratch
