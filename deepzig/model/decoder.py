"""One decoder layer (HF DeepseekV3DecoderLayer). Made by `assemble`, called by `deepseek` and `mtp`; calls
`attention`, `mlp`, `moe`."""

import numpy as np

from deepzig.model.attention import Attention
from deepzig.model.mlp import MLP
from deepzig.model.moe import MoE
from deepzig.model.norm import RMSNorm
from deepzig.model.workspace import Step


class DecoderLayer:
    """hidden += self_attn(input_layernorm(hidden)); hidden += mlp(post_attention_layernorm(hidden))."""

    def __init__(
        self, self_attn: Attention, mlp: MLP | MoE, input_layernorm: RMSNorm, post_attention_layernorm: RMSNorm
    ) -> None:
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = input_layernorm, post_attention_layernorm

    def __call__(self, hidden: np.ndarray, step: Step) -> None:
        """hidden f32 (T, D), in place."""
        space = step.space
        normed = self.input_layernorm(hidden, space.normed)
        hidden += self.self_attn(normed, step, space.sublayer_out)
        normed = self.post_attention_layernorm(hidden, space.normed)
        hidden += self.mlp(normed, step, space.sublayer_out)
