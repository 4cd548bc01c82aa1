"""The logits of a step, and the likeliest token of each row.

Made by `engine`, read by `step_sampling`; knows nothing of requests.
"""

import numpy as np

from deepzig.engine.sampling import check_finite


class LogitRows:
    """The logits of a step, f32 (T, vocab_size), and the greatest of each row, found for all at once."""

    def __init__(self, logits: np.ndarray, time: float) -> None:
        self.logits = logits
        self.time = time  # time.perf_counter when they were there
        self._argmax: list[int] = []  # a token of each row
        self._are_finite = True  # the greatest logits

    def argmax(self, row: int) -> int:
        """The token with the greatest logit, the first of equal ones. Raises NonFiniteLogitsError."""
        if not self._argmax:
            tokens = self.logits.argmax(axis=1)
            self._argmax = tokens.tolist()
            self._are_finite = bool(np.isfinite(self.logits[np.arange(len(tokens)), tokens]).all())
        token = self._argmax[row]
        if not self._are_finite:
            check_finite(float(self.logits[row, token]))
        return token
