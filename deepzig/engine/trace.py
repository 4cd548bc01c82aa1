"""Trace: what the layers did with a text, for study. Made by `llm`, read by users.

Calls the model through `whole_sequence`, with an observer that copies what a step leaves in the workspace.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deepzig.engine.whole_sequence import forward_chunks
from deepzig.model.deepseek import DeepseekModel
from deepzig.model.workspace import Workspace


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """Hidden states and routing of T tokens. Arrays are copies; layers count from 0, dense layers have no routing."""

    token_ids: np.ndarray  # i32 (T,)
    hidden_states: list[np.ndarray]  # f32 (T, D): the embedding, then the residual stream after each layer
    topk_idx: dict[int, np.ndarray]  # MoE layer: i32 (T, K), chosen experts
    topk_weight: dict[int, np.ndarray]  # MoE layer: f32 (T, K), their weights, routed_scaling_factor included
    n_routed_experts: int  # E

    def __repr__(self) -> str:
        n_tokens, n_layers = len(self.token_ids), len(self.hidden_states) - 1
        return f"<Trace of {n_tokens} tokens, {n_layers} layers, {self.n_routed_experts} experts>"

    @cached_property
    def hidden_norms(self) -> np.ndarray:
        """f32 (L + 1, T): Euclidean norm of each token's hidden state, of the embedding and after each layer."""
        return np.stack([np.linalg.norm(hidden, axis=1) for hidden in self.hidden_states])

    @cached_property
    def expert_load(self) -> dict[int, np.ndarray]:
        """MoE layer: i64 (E,), how many of the tokens each expert was chosen for; sums to T * K."""
        n_experts = self.n_routed_experts
        return {layer: np.bincount(idx.ravel(), minlength=n_experts) for layer, idx in self.topk_idx.items()}


def trace_sequence(model: DeepseekModel, token_ids: np.ndarray) -> Trace:
    """Run token_ids i32 (T,) through the layers in one chunk and keep what they did: D + 2 K floats per token and
    layer."""
    trace = Trace(token_ids, [], {}, {}, model.config.n_routed_experts)

    def observe(layer: int, hidden: np.ndarray, space: Workspace) -> None:
        trace.hidden_states.append(hidden.copy())
        if layer >= 0 and model.config.is_moe_layer(layer):
            trace.topk_idx[layer] = space.topk_idx.copy()
            trace.topk_weight[layer] = space.topk_weight.copy()

    cache = model.make_cache(len(token_ids))
    list(forward_chunks(model, token_ids, cache, chunk_size=len(token_ids), observer=observe))
    return trace
