"""The kernels of deepzig, each bound to its best implementation for this machine.

Called by `model`, `engine`, `checkpoint` and `evaluate`; calls nothing above `errors`. A kernel `name` has its contract
in `name.py` (formula, shapes, reference) and implementations in `name_numba.py` and `name_cython.pyx`; `_pick` chooses.
"""

from deepzig._kernels._pick import (
    ACTIVE,
    FOR_PROMPTS,
    REGISTRY,
    BuildReport,
    Kernel,
    KernelRow,
    build_report,
    highest_isa,
    implementations,
    in_a_line,
    long_chunk,
    pick,
    pick_for_prompts,
    table,
)
from deepzig._kernels.weight import DECODING, EXACT, FAST

absorb_query = pick("absorb_query")
absorb_value = pick("absorb_value")
dequantize = pick("dequantize")
expert_gate = pick("expert_gate")
experts = pick("experts")
linear = pick("linear")
mla_decode = pick("mla_decode")
mla_prefill = pick("mla_prefill")
rms_norm = pick("rms_norm")
rope = pick("rope")
softmax = pick("softmax")
swiglu = pick("swiglu")
top_tokens = pick("top_tokens")

# For rows of prompts that need not have the bits of decoding, where `arithmetic` is FAST or EXACT.
prompt_experts = pick_for_prompts("experts")
prompt_linear = pick_for_prompts("linear")
LONG_CHUNK = long_chunk()

__all__ = [
    "ACTIVE",
    "DECODING",
    "EXACT",
    "FAST",
    "FOR_PROMPTS",
    "LONG_CHUNK",
    "REGISTRY",
    "BuildReport",
    "Kernel",
    "KernelRow",
    "absorb_query",
    "absorb_value",
    "build_report",
    "dequantize",
    "expert_gate",
    "experts",
    "highest_isa",
    "implementations",
    "in_a_line",
    "linear",
    "mla_decode",
    "mla_prefill",
    "prompt_experts",
    "prompt_linear",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
    "table",
    "top_tokens",
]
