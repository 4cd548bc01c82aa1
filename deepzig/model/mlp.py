"""The dense MLP of the first layers and of the shared experts (HF DeepseekV3MLP). Called by `decoder` and `moe`."""

import numpy as np

from deepzig import _kernels
from deepzig.model.linear import Linear
from deepzig.model.workspace import Step


class MLP:
    """down_proj(silu(gate_proj(x)) * up_proj(x))."""

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear, n_threads: int) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self._n_threads = n_threads

    def __call__(self, x: np.ndarray, step: Step, out: np.ndarray) -> np.ndarray:
        """x f32 (T, D) -> out f32 (T, D), returned; the activations are scratch of the step."""
        intermediate = self.gate_proj.out_features
        gate, up = step.space.gate[:, :intermediate], step.space.up[:, :intermediate]
        self.gate_proj(x, gate, step.arithmetic)
        self.up_proj(x, up, step.arithmetic)
        _kernels.swiglu(gate, up, gate, n_threads=self._n_threads)
        return self.down_proj(gate, out, step.arithmetic)
