"""ExpertCounter: how often each expert is chosen while requests are served.

Made by `LLM.count_experts`, read by `server`. An observer of the model's steps: it knows layers and experts, nothing of
requests.
"""

import numpy as np

from deepzig.config import ModelConfig
from deepzig.model.workspace import Workspace


class ExpertCounter:
    """How often each expert was chosen since `LLM.count_experts`, for all requests together: prompts and answers.

    It counts in the engine's thread; reading from another gives the state of some recent step.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._n_experts = config.n_routed_experts
        self._counts = {layer: np.zeros(self._n_experts, np.int64) for layer in config.moe_layers}  # i64 (E,) each

    def observe(self, layer: int, hidden: np.ndarray, space: Workspace) -> None:
        """See `DeepseekModel.forward`."""
        if layer in self._counts:
            self._counts[layer] += np.bincount(space.topk_idx.ravel(), minlength=self._n_experts)

    def counts(self) -> dict[int, np.ndarray]:
        """MoE layer: i64 (E,), for how many tokens each expert was chosen so far."""
        return {layer: counts.copy() for layer, counts in self._counts.items()}
