"""Mixture of experts: router, routed experts, shared experts (HF DeepseekV3MoE, DeepseekV2Moe). Called by `decoder`."""

import numpy as np

from deepzig import _kernels
from deepzig._kernels.weight import ExpertWeights
from deepzig.config import ModelConfig
from deepzig.model.linear import Linear
from deepzig.model.mlp import MLP
from deepzig.model.workspace import Step, Workspace


class MoE:
    """out = sum of the chosen routed experts, weighted, plus the shared experts (DeepSeek-V3 report, eq. 12-16, without
    the residual, which `decoder` adds)."""

    def __init__(
        self,
        config: ModelConfig,
        gate: Linear,
        e_score_correction_bias: np.ndarray | None,
        experts: ExpertWeights,
        shared_experts: MLP | None,
        n_threads: int,
    ) -> None:
        """e_score_correction_bias f32 (E,), noaux_tc only."""
        self.gate, self.e_score_correction_bias = gate, e_score_correction_bias
        self.experts, self.shared_experts = experts, shared_experts
        self._config = config
        self._n_threads = n_threads

    def __call__(self, x: np.ndarray, step: Step, out: np.ndarray) -> np.ndarray:
        """x f32 (T, D) -> out f32 (T, D), returned."""
        space = step.space
        self._route(x, space)
        multiply = _kernels.experts if step.arithmetic == _kernels.DECODING else _kernels.prompt_experts
        multiply(
            x,
            space.topk_idx,
            space.topk_weight,
            self.experts,
            space.expert_scratch,
            out,
            arithmetic=step.arithmetic,
            n_threads=self._n_threads,
        )
        if self.shared_experts is not None:
            out += self.shared_experts(x, step, space.shared_out)
        return out

    def _route(self, x: np.ndarray, space: Workspace) -> None:
        """x f32 (T, D) -> space.topk_idx i32 (T, K), space.topk_weight f32 (T, K)."""
        config = self._config
        self.gate(x, space.router_logits)
        _kernels.expert_gate(
            space.router_logits,
            self.e_score_correction_bias,
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
            config.scoring_func,
            config.topk_method,
            config.norm_topk_prob,
            config.routed_scaling_factor,
            space.topk_idx,
            space.topk_weight,
            n_threads=self._n_threads,
        )
