"""Linear layer: a weight of any format, bound once to the kernel that multiplies with it.

Made and called by the other modules of `model`; calls `_kernels.linear`. Knows nothing of what the product means.
"""

import numpy as np

from deepzig import _kernels
from deepzig._kernels.weight import Weight


class Linear:
    """y = x W^T + bias (HF nn.Linear)."""

    def __init__(self, weight: Weight, bias: np.ndarray | None, n_threads: int) -> None:
        """weight (N, K); bias f32 (N,) or None."""
        self.weight = weight
        self.bias = bias
        self.out_features = weight.shape[0]
        self._n_threads = n_threads

    def __call__(self, x: np.ndarray, out: np.ndarray, arithmetic: int = _kernels.DECODING) -> np.ndarray:
        """x f32 (T, K) -> out f32 (T, N), returned. Rows contiguous; row strides are free. arithmetic as the kernel."""
        multiply = _kernels.linear if arithmetic == _kernels.DECODING else _kernels.prompt_linear
        multiply(x, self.weight, out, arithmetic=arithmetic, n_threads=self._n_threads)
        if self.bias is not None:
            out += self.bias
        return out
