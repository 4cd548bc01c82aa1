"""The multi-token prediction layer (DeepSeek-V3 report, section 2.2; HF MtpLayer). Made by `assemble`, called by
`deepseek`."""

import numpy as np

from deepzig.model.decoder import DecoderLayer
from deepzig.model.linear import Linear
from deepzig.model.norm import RMSNorm
from deepzig.model.workspace import Step


class MtpLayer:
    """From the final-normed hidden state at position t and the token at t + 1, the hidden state that predicts t + 2.

    hidden' = shared_head.norm(layer(eh_proj([enorm(embedding(token)); hnorm(hidden)])))

    (The report's eq. 21 has the two halves the other way round; the published weights want them so.)

    A row has the position of its hidden state, so that the layer's cache begins at 0. transformers gives it the
    token's position; rotary embedding is relative, so that the result is the same.
    """

    def __init__(
        self,
        enorm: RMSNorm,
        hnorm: RMSNorm,
        eh_proj: Linear,
        layer: DecoderLayer,
        shared_head_norm: RMSNorm,
        shared_head: Linear,
    ) -> None:
        self.enorm, self.hnorm, self.eh_proj = enorm, hnorm, eh_proj
        self.layer, self.shared_head_norm, self.shared_head = layer, shared_head_norm, shared_head

    def __call__(self, embedded: np.ndarray, hidden: np.ndarray, step: Step) -> np.ndarray:
        """hidden f32 (T, D) of step.rows, embedded f32 (T, D) of the tokens after them -> f32 (T, D)."""
        normed = self.hnorm(hidden, step.space.normed)
        both = np.concatenate([self.enorm(embedded, embedded), normed], axis=1)  # (T, 2 D)
        state = self.eh_proj(both, step.space.hidden)
        self.layer(state, step)
        return self.shared_head_norm(state, np.empty_like(state))
