"""Multi-head latent attention (DeepSeek-V3 report, eq. 1-11; DeepSeek-V2 report, section 2.1; HF DeepseekV3Attention).

Of a token's x f32 (D,); in brackets the report's matrices:

    q_nope (H, N), q_pe (H, P)    q_b_proj q_a_layernorm(q_a_proj x)  [W_UQ, W_QR; W_DQ], or q_proj x; q_pe is rotated
    c_kv (R,), k_pe (P,)          kv_a_proj_with_mqa x  [W_DKV, W_KR]; c_kv is normed, k_pe rotated; both are cached
    k_nope (H, N), v (H, V)       kv_b_proj c_kv  [W_UK, W_UV]
    score[h, s]                   softmax_scale (q_nope[h] . k_nope[s, h] + q_pe[h] . k_pe[s])
    out (D,)                      o_proj of all heads' sum_s softmax(score)[h, s] v[s, h]  [W_O]

Two forms of it. Expanded, cheap for prompts: k_nope and v are computed from cached rows, tile by tile. Absorbed, cheap
for few new tokens: since q_nope . (W_UK c_kv) = (W_UK^T q_nope) . c_kv, queries move into the latent space, attend to
the cached rows as they are, and W_UV maps the weighted sum of c_kv to the heads.

Called by `decoder`; calls `_kernels` and the latent cache. Knows nothing of requests.
"""

import numpy as np

from deepzig import _kernels
from deepzig.config import ModelConfig
from deepzig.model.linear import Linear
from deepzig.model.norm import RMSNorm
from deepzig.model.workspace import Step

KEY_TILE = 512  # cached rows that are expanded at a time


class Attention:
    """One layer's attention."""

    def __init__(
        self,
        config: ModelConfig,
        cache_layer: int,
        q_proj: Linear | None,
        q_a_proj: Linear | None,
        q_a_layernorm: RMSNorm | None,
        q_b_proj: Linear | None,
        kv_a_proj_with_mqa: Linear,
        kv_a_layernorm: RMSNorm,
        kv_b_proj: Linear,
        o_proj: Linear,
        n_threads: int,
    ) -> None:
        """cache_layer: its index in the cache. Either q_proj, or q_a_proj, q_a_layernorm and q_b_proj."""
        self.q_proj, self.q_a_proj, self.q_a_layernorm, self.q_b_proj = q_proj, q_a_proj, q_a_layernorm, q_b_proj
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = kv_a_proj_with_mqa, kv_a_layernorm
        self.kv_b_proj, self.o_proj = kv_b_proj, o_proj
        self._cache_layer = cache_layer
        self._rank = config.kv_lora_rank
        self._interleave = config.rope_interleave
        self._softmax_scale = config.softmax_scale
        self._n_threads = n_threads

    def __call__(self, x: np.ndarray, step: Step, out: np.ndarray) -> np.ndarray:
        """x f32 (T, D) -> out f32 (T, D), returned; the rows' latents go to the cache."""
        space = step.space
        self._project_query(x, step)
        self._project_latent(x, step)
        step.cache.write(self._cache_layer, step.rows, space.latent)
        if step.form == "absorbed":
            self._attend_absorbed(step)
        else:
            self._attend_expanded(step)
        return self.o_proj(space.o_flat, out, step.arithmetic)

    def _project_query(self, x: np.ndarray, step: Step) -> None:
        """space.q f32 (T, H, N + P), its last P rotated."""
        space = step.space
        if self.q_proj is not None:
            self.q_proj(x, space.q_flat, step.arithmetic)
        else:
            assert self.q_a_proj is not None and self.q_a_layernorm is not None and self.q_b_proj is not None
            self.q_a_proj(x, space.q_a, step.arithmetic)
            self.q_b_proj(self.q_a_layernorm(space.q_a, space.q_a), space.q_flat, step.arithmetic)
        _kernels.rope(space.q_pe, step.cos, step.sin, self._interleave, n_threads=self._n_threads)

    def _project_latent(self, x: np.ndarray, step: Step) -> None:
        """space.latent f32 (T, R + P): c_kv, normed, beside k_pe, rotated."""
        space = step.space
        self.kv_a_proj_with_mqa(x, space.latent, step.arithmetic)
        self.kv_a_layernorm(space.c_kv, space.c_kv)
        _kernels.rope(space.k_pe, step.cos, step.sin, self._interleave, n_threads=self._n_threads)

    def _attend_absorbed(self, step: Step) -> None:
        """space.o f32 (T, H, V) by way of the latent space."""
        rows, space = step.rows, step.space
        weight = self.kv_b_proj.weight
        _kernels.absorb_query(space.q_nope, weight, space.q_latent_nope, n_threads=self._n_threads)
        space.q_latent_pe[...] = space.q_pe
        at_a_time, scratch = space.attention_scratch.for_decoding(rows.n_rows, rows.longest)
        for first in range(0, rows.n_rows, at_a_time):
            part = slice(first, first + at_a_time)
            _kernels.mla_decode(
                space.q_latent[part],
                *step.cache.layer_rows(self._cache_layer),
                rows.block_tables,
                rows.row_sequence[part],
                rows.lengths[part],
                self._softmax_scale,
                scratch,
                space.o_latent[part],
                n_threads=self._n_threads,
            )
        _kernels.absorb_value(space.o_latent, weight, space.o, n_threads=self._n_threads)

    def _attend_expanded(self, step: Step) -> None:
        """space.o f32 (T, H, V) by keys and values, sequence by sequence."""
        rows, space = step.rows, step.space
        for first, stop in rows.spans():
            block_table = rows.block_tables[rows.row_sequence[first]]
            first_query = int(rows.positions[first])
            self._attend_sequence(space.q[first:stop], first_query, block_table, step, space.o[first:stop])

    def _attend_sequence(
        self, q: np.ndarray, first_query: int, block_table: np.ndarray, step: Step, out: np.ndarray
    ) -> None:
        """q f32 (T, H, N + P) of positions from first_query on -> out f32 (T, H, V). KEY_TILE cached rows at a time."""
        n_rows, n_heads = q.shape[:2]
        length = first_query + n_rows
        running_max = np.full((n_rows, n_heads), -np.inf, np.float32)
        running_sum = np.zeros((n_rows, n_heads), np.float32)
        out.fill(0)
        for first_key in range(0, length, KEY_TILE):
            stop_key = min(first_key + KEY_TILE, length)
            latent = step.cache.read(self._cache_layer, block_table, first_key, stop_key)  # (S, R + P)
            kv = step.space.attention_scratch.keys_and_values(len(latent))
            self.kv_b_proj(latent[:, : self._rank], kv, step.arithmetic)
            _kernels.mla_prefill(
                q,
                kv.reshape(len(latent), n_heads, -1),
                np.ascontiguousarray(latent[:, self._rank :]),
                first_query,
                first_key,
                self._softmax_scale,
                running_max,
                running_sum,
                out,
                arithmetic=step.arithmetic,
                n_threads=self._n_threads,
            )
        out /= running_sum[:, :, None]


def cheaper_form(config: ModelConfig, n_rows: int, length: int) -> str:
    """Form with fewer multiplications for n_rows new tokens at the end of `length` cached rows.

    Expanded pays (N + V) R a head to expand each cached row and N + P + V a pair; absorbed pays (N + V) R a new token
    and 2 R + P a pair. In a fresh prompt the first terms are equal and expanded wins.
    """
    rank, rope_dim = config.kv_lora_rank, config.qk_rope_head_dim
    per_row = (config.qk_nope_head_dim + config.v_head_dim) * rank
    pairs = n_rows * length
    expanded = length * per_row + pairs * (config.qk_head_dim + config.v_head_dim)
    absorbed = n_rows * per_row + pairs * (2 * rank + rope_dim)
    return "expanded" if expanded < absorbed else "absorbed"
