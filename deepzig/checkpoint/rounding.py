"""From f32 matrices to the plain float formats.

Called by `quantize`; calls nothing but the errors. `rounding_numba` rounds to the other formats. Knows no files.
"""

import ml_dtypes
import numpy as np

from deepzig.errors import CheckpointError

_INFINITY = {"f16": 0x7C00, "bf16": 0x7F80}  # bits
_OVERFLOWS = {
    "f16": "a weight exceeds 65504, the greatest float16; use bf16",
    "bf16": "a weight exceeds 3.39e38, the greatest bfloat16; leave its module out",
}


def cast(values: np.ndarray, name: str) -> np.ndarray:
    """The bits u16 (N, K) of `values` f32 (N, K) in the format "bf16" or "f16", rounded to nearest even.

    Raises CheckpointError if finite values overflow.
    """
    with np.errstate(over="ignore"):
        codes: np.ndarray = values.astype(ml_dtypes.bfloat16 if name == "bf16" else np.float16).view(np.uint16)
    n_infinite = np.count_nonzero(codes & 0x7FFF == _INFINITY[name])
    if n_infinite and n_infinite > np.count_nonzero(np.isinf(values)):
        raise CheckpointError(_OVERFLOWS[name])
    return codes
