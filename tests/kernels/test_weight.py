"""What a Weight refuses: forms that kernels would read beyond, or multiply with as something else."""

from typing import Any

import numpy as np
import pytest

from deepzig._kernels.weight import Weight

CODES = {"f32": np.float32, "bf16": np.uint16, "fp8": np.uint8, "int8": np.uint8, "int4": np.uint8}


def weight(name: str, shape: tuple[int, int] = (4, 8), **changes: Any) -> Weight:
    scale = {"scale": np.ones((4, 1), np.float32), "scale_format": "f32", "group_size": 8}
    given = {"codes": np.zeros(shape, CODES[name]), **({} if name in ("f32", "bf16") else scale), **changes}
    return Weight(name, shape, **given)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("f32", {"shape": (0, 8)}, "has no values"),
        ("f32", {"shape": (4, 0)}, "has no values"),
        ("f32", {"codes": np.zeros((4, 7), np.float32)}, "cannot hold"),
        ("f32", {"codes": np.zeros((4, 16), np.float32)[:, ::2]}, "codes of a f32 weight"),
        ("bf16", {"scale": np.ones((4, 1), np.float32), "scale_format": "f32", "group_size": 8}, "has no scale"),
        ("int8", {"offset": 5}, "offset 5"),
        ("int4", {"offset": 128}, "offset 128"),
        ("int8", {"scale_format": "none"}, "together"),
        ("int8", {"scale_format": "f8"}, "together"),
        ("int8", {"scale": np.ones((4, 1), np.float64)}, "which is no f32"),
        ("fp8", {"scale": np.ones((4, 2), np.float32)}, "scale has shape"),
        ("fp8", {"group_size": 0}, "at least 1"),
    ],
)
def test_what_no_checkpoint_has_is_refused(name: str, changes: dict[str, Any], complaint: str) -> None:
    assert weight(name).shape == (4, 8)
    with pytest.raises(ValueError, match=complaint):
        weight(name, **changes)
