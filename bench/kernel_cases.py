"""The calls that `kernels` times: every kernel of the registry, at shapes of V2-Lite, V3 and the synthetic model.

Calls `random_weights`. Knows shapes, no timing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.random_weights import RandomWeights, scheme_for
from deepzig._kernels import ACTIVE, REGISTRY, implementations
from deepzig._kernels._isa import ISA_NAMES
from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.experts import scratch_size as expert_scratch_size
from deepzig._kernels.mla_decode import scratch_size as mla_scratch_size
from deepzig._kernels.weight import EXACT, FAST, ExpertWeights, Weight
from deepzig.model.workspace import aligned_floats

ROTATED_BYTES = 1_100_000_000  # that a case goes through before it meets the same operands again: no cache holds them
MAX_VARIANTS = 1024
PROMPT = 512  # rows
FORMATS = ("bf16", "fp8", "int8", "int4")
DENSE = (10944, 2048)  # gate_proj of V2-Lite's dense layer
N_EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 64, 6, 2048, 1408
N_HEADS, NOPE, ROPE, VALUE, RANK = 16, 128, 64, 128, 512  # of V2-Lite; V3 has 128 heads
VOCABULARY = 129280

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A kernel and calls of the same shape with operands of their own, to be made in turn."""

    stem: str
    name: str
    variants: list[Arguments]
    keywords: dict[str, Any] = field(default_factory=dict)
    implementation: str = ""  # the picked one, unless stated

    @property
    def is_cold(self) -> bool:
        """Whether the operands come from memory, not from a cache."""
        return len(self.variants) * REGISTRY[self.stem].cost(*self.variants[0])[0] >= ROTATED_BYTES * 0.9


class Operands:
    """Random operands, made quickly by tiling a random block."""

    def __init__(self) -> None:
        self._weights = RandomWeights()
        self._block = np.random.default_rng(0).standard_normal(1 << 20, np.float32)

    def floats(self, *shape: int) -> np.ndarray:
        """f32 of `shape`, of variance 1, aligned as the engine's."""
        values = aligned_floats(*shape)
        values[...] = np.resize(self._block, shape)
        return values

    def weight(self, name: str, shape: tuple[int, int], index: int = 0) -> Weight:
        """A weight (N, K) in the format `name`; another for another `index`."""
        return self._weights.weight(f"{name}{index}", shape, scheme_for(name, shape[1]))

    def experts(self, name: str) -> ExpertWeights:
        """The routed experts of a layer."""

        def matrices(n: int, k: int) -> list[Weight]:
            return [self.weight(name, (n, k), i) for i in range(N_EXPERTS)]

        up = (INTERMEDIATE, HIDDEN)
        return ExpertWeights(matrices(*up), matrices(*up), matrices(HIDDEN, INTERMEDIATE))


def rotated(stem: str, name: str, make: Callable[[int], Arguments]) -> Case:
    """The case of make(0), make(1), ... until a round through them touches ROTATED_BYTES."""
    first = make(0)
    count = min(MAX_VARIANTS, -(-ROTATED_BYTES // max(1, REGISTRY[stem].cost(*first)[0])))
    return Case(stem, name, [first, *(make(i) for i in range(1, count))])


def is_fast_apart(stem: str) -> bool:
    """Whether `precision="fast"` is another code than "exact" in the picked kernel: above plain C."""
    return ACTIVE[stem].removeprefix("cython/") in ISA_NAMES[1:]


def in_all_ways(stem: str, name: str, arguments: Arguments) -> Iterator[Case]:
    """A product as in decoding and, where the picked kernel may tell them apart, as of fast and of exact prompts."""
    yield Case(stem, name, [arguments])
    if is_fast_apart(stem):
        yield Case(stem, f"{name}, fast", [arguments], {"arithmetic": FAST})
        yield Case(stem, f"{name}, exact", [arguments], {"arithmetic": EXACT})


def linear_cases(operands: Operands) -> Iterator[Case]:
    """A dense matrix with one row, with 4 (verification) and with a prompt."""
    for name in ("f32", "f16", *FORMATS):
        yield _linear_case(operands, name, 1)
    for name in FORMATS:
        yield _linear_case(operands, name, 4)
    has_blas = "blas" in [label for label, _ in implementations("linear")] and ACTIVE["linear"] != "blas"
    for name in FORMATS:
        out = aligned_floats(PROMPT, DENSE[0])
        arguments = (operands.floats(PROMPT, DENSE[1]), operands.weight(name, DENSE), out)
        yield from in_all_ways("linear", f"{name}, {PROMPT} rows", arguments)
        if has_blas:
            yield Case("linear", f"{name}, {PROMPT} rows", [arguments], implementation="blas")


def _linear_case(operands: Operands, name: str, n_rows: int) -> Case:
    x, out = operands.floats(n_rows, DENSE[1]), aligned_floats(n_rows, DENSE[0])
    shown = f"{name}, {n_rows} row{'s' if n_rows > 1 else ''}"
    return rotated("linear", shown, lambda i: (x, operands.weight(name, DENSE, i), out))


def experts_cases(operands: Operands) -> Iterator[Case]:
    """The routed experts of the synthetic model, with one row and with a prompt."""
    for name in FORMATS:
        layers: list[ExpertWeights] = []
        while sum(map(_expert_bytes, layers)) < ROTATED_BYTES:
            layers.append(operands.experts(name))
        yield _experts_case(operands, name, layers)
        yield from in_all_ways("experts", f"{name}, {PROMPT} rows", _experts_arguments(operands, PROMPT, 0, layers[0]))


def _experts_case(operands: Operands, name: str, layers: list[ExpertWeights]) -> Case:
    return rotated(
        "experts", f"{name}, 1 row", lambda i: _experts_arguments(operands, 1, i, layers[i % len(layers)])
    )


def _experts_arguments(operands: Operands, n_rows: int, seed: int, layer: ExpertWeights) -> Arguments:
    scores = np.random.default_rng(seed).random((n_rows, N_EXPERTS))
    topk_idx = np.argsort(scores, axis=1)[:, :TOP_K].astype(np.int32)
    topk_weight = np.full((n_rows, TOP_K), 0.4, np.float32)
    scratch = aligned_floats(expert_scratch_size(n_rows, TOP_K, HIDDEN, INTERMEDIATE))
    x = operands.floats(n_rows, HIDDEN)
    return x, topk_idx, topk_weight, layer, scratch, np.empty_like(x)


def _expert_bytes(experts: ExpertWeights) -> int:
    return sum(weight.nbytes for weight in (*experts.gate_proj, *experts.up_proj, *experts.down_proj))


def absorb_query_cases(operands: Operands) -> Iterator[Case]:
    """One row of V2-Lite."""
    for name in FORMATS:
        yield _half_of_kv_b_proj(operands, "absorb_query", name, NOPE, RANK)


def absorb_value_cases(operands: Operands) -> Iterator[Case]:
    """One row of V2-Lite."""
    for name in FORMATS:
        yield _half_of_kv_b_proj(operands, "absorb_value", name, RANK, VALUE)


def _half_of_kv_b_proj(operands: Operands, stem: str, name: str, n_in: int, n_out: int) -> Case:
    shape = (N_HEADS * (NOPE + VALUE), RANK)
    x, out = operands.floats(1, N_HEADS, n_in), aligned_floats(1, N_HEADS, n_out)
    return rotated(stem, f"{name}, {N_HEADS} heads, 1 row", lambda i: (x, operands.weight(name, shape, i), out))


def mla_decode_cases(operands: Operands) -> Iterator[Case]:
    """One row over 4096 cached ones, of V2-Lite and of V3, f32 and int8 caches."""
    for n_heads in (N_HEADS, 128):
        for dtype in ("f32", "int8"):
            yield _mla_decode_case(operands, n_heads, dtype)


def _mla_decode_case(operands: Operands, n_heads: int, dtype: str) -> Case:
    length, page_size, width = 4096, 64, RANK + ROPE
    q_latent, out = operands.floats(1, n_heads, width), aligned_floats(1, n_heads, RANK)
    scratch = aligned_floats(mla_scratch_size(1, n_heads, RANK, length))
    block_tables = np.arange(length // page_size, dtype=np.int32)[None]
    row_sequence, lengths = np.zeros(1, np.int32), np.array([length], np.int32)

    def make(_: int) -> Arguments:
        pages = operands.floats(length // page_size, page_size, width)
        if dtype == "int8":
            pages = np.clip(np.rint(30 * pages), -127, 127).astype(np.int8)
        scales = np.full(pages.shape[:2], 1 / 30, np.float32) if dtype == "int8" else None
        return q_latent, pages, scales, block_tables, row_sequence, lengths, 0.05, scratch, out

    return rotated("mla_decode", f"{n_heads} heads, {length} rows of {dtype}", make)


def mla_prefill_cases(operands: Operands) -> Iterator[Case]:
    """A prompt over the tile of its own keys, and over an earlier one."""
    for first_query in (0, PROMPT):
        q, kv = operands.floats(PROMPT, N_HEADS, NOPE + ROPE), operands.floats(PROMPT, N_HEADS, NOPE + VALUE)
        highest, total = np.full((PROMPT, N_HEADS), -np.inf, np.float32), np.zeros((PROMPT, N_HEADS), np.float32)
        out = np.zeros((PROMPT, N_HEADS, VALUE), np.float32)
        arguments = (q, kv, operands.floats(PROMPT, ROPE), first_query, 0, 0.07, highest, total, out)
        shown = f"{N_HEADS} heads, {PROMPT} x {PROMPT}{'' if first_query else ', causal'}"
        yield Case("mla_prefill", shown, [arguments])
        if ACTIVE["mla_prefill"].endswith(("amx", "bf16")):
            yield Case("mla_prefill", f"{shown}, fast", [arguments], {"arithmetic": FAST})


def expert_gate_cases(operands: Operands) -> Iterator[Case]:
    """The routers of the synthetic model and of V3."""
    for n_experts, top_k in ((N_EXPERTS, TOP_K), (256, 8)):
        for n_rows in (1, PROMPT):
            bias = operands.floats(n_experts) * np.float32(0.01)
            chosen, weight = np.empty((n_rows, top_k), np.int32), np.empty((n_rows, top_k), np.float32)
            logits = operands.floats(n_rows, n_experts)
            arguments = (logits, bias, top_k, 8, 4, "sigmoid", "noaux_tc", True, 2.5, chosen, weight)
            yield Case("expert_gate", f"{n_rows} x {n_experts}, top {top_k}", [arguments])


def rms_norm_cases(operands: Operands) -> Iterator[Case]:
    """Hidden states."""
    weight = operands.floats(HIDDEN)
    yield Case("rms_norm", f"1 x {HIDDEN}", [(operands.floats(1, HIDDEN), weight, 1e-6, operands.floats(1, HIDDEN))])
    shape = (PROMPT, HIDDEN)
    yield rotated(
        "rms_norm", f"{PROMPT} x {HIDDEN}", lambda _: (operands.floats(*shape), weight, 1e-6, operands.floats(*shape))
    )


def rope_cases(operands: Operands) -> Iterator[Case]:
    """The rotary parts of all heads' queries."""
    cos, sin = operands.floats(2, PROMPT, ROPE // 2)
    shown = f"{N_HEADS} x {ROPE}, interleaved"
    yield Case("rope", f"1 x {shown}", [(operands.floats(1, N_HEADS, ROPE), cos[:1], sin[:1], True)])
    yield rotated("rope", f"{PROMPT} x {shown}", lambda _: (operands.floats(PROMPT, N_HEADS, ROPE), cos, sin, True))


def softmax_cases(operands: Operands) -> Iterator[Case]:
    """Scores of a head, and the logits of V3."""
    for shape in ((PROMPT, PROMPT), (1, VOCABULARY)):
        yield _pointwise_case(operands, "softmax", shape, 2)


def swiglu_cases(operands: Operands) -> Iterator[Case]:
    """Halves of the dense MLP."""
    for n_rows in (1, PROMPT):
        yield _pointwise_case(operands, "swiglu", (n_rows, DENSE[0]), 3)


def _pointwise_case(operands: Operands, stem: str, shape: tuple[int, int], n_arrays: int) -> Case:
    """A kernel that takes n_arrays of one shape and nothing else."""
    name = f"{shape[0]} x {shape[1]}"
    return rotated(stem, name, lambda _: tuple(operands.floats(*shape) for _ in range(n_arrays)))


def top_tokens_cases(operands: Operands) -> Iterator[Case]:
    """Logits of V3, with the usual cuts; then those of a grammar's step."""
    logits = operands.floats(VOCABULARY) * np.float32(4)
    token_ids, probs = np.empty(VOCABULARY, np.int32), np.empty(VOCABULARY, np.float32)
    for shown, top_k, top_p in (("no cut", 0, 1.0), ("top_p 0.95", 0, 0.95), ("top_k 50", 50, 1.0)):
        yield Case("top_tokens", f"{VOCABULARY}, {shown}", [(logits, 1.0, top_k, top_p, 0.0, token_ids, probs)])
    constrained = np.full(VOCABULARY, -np.inf, np.float32)
    constrained[:3] = logits[:3]
    yield Case("top_tokens", f"{VOCABULARY}, top_k 50 of 3", [(constrained, 1.0, 50, 1.0, 0.0, token_ids, probs)])


def dequantize_cases(operands: Operands) -> Iterator[Case]:
    """A dense matrix to float32, into memory; then in panels that stay in a cache, as linear:blas does."""
    panel = 128
    whole, part = np.empty(DENSE, np.float32), np.empty((panel, DENSE[1]), np.float32)
    for name in ("f16", *FORMATS):
        count = -(-ROTATED_BYTES // operands.weight(name, DENSE).nbytes)
        weights = [operands.weight(name, DENSE, i) for i in range(count)]
        yield Case("dequantize", f"{name}, whole", [(weight, all_rows(weight), whole) for weight in weights])
        panels = all_rows(weights[0])[: DENSE[0] // panel * panel].reshape(-1, panel)
        panel_operands = [(weight, rows, part) for weight in weights for rows in panels]
        yield Case("dequantize", f"{name}, {panel} rows", panel_operands)


CASES: dict[str, Callable[[Operands], Iterator[Case]]] = {
    "linear": linear_cases,
    "experts": experts_cases,
    "absorb_query": absorb_query_cases,
    "mla_decode": mla_decode_cases,
    "absorb_value": absorb_value_cases,
    "mla_prefill": mla_prefill_cases,
    "expert_gate": expert_gate_cases,
    "rms_norm": rms_norm_cases,
    "rope": rope_cases,
    "softmax": softmax_cases,
    "swiglu": swiglu_cases,
    "top_tokens": top_tokens_cases,
    "dequantize": dequantize_cases,
}
