"""expert_gate: which experts see a token, and with what weight (DeepSeek-V3 report, section 2.1.2, eq. 13-16; HF
`DeepseekV3TopkRouter`, `DeepseekV2TopkRouter`). Groups stand for the machines of the training, few of which a token is
sent to (node-limited routing there; device-limited routing, DeepSeek-V2 report, section 2.2.2).

logits       f32 (T, E), rows packed
bias         f32 (E,), `e_score_correction_bias`, or None
topk_idx     i32 (T, K), K = top_k; written
topk_weight  f32 (T, K); written

scores = sigmoid(logits) or softmax(logits), by scoring_func; choice = scores + bias. Experts are chosen by
- "greedy": the K highest choices; n_group and topk_group do not matter;
- "group_limited_greedy" (V2): E is n_group groups in order, a group counts as its highest choice, the topk_group best
  groups stay; choices and weights of the others become 0;
- "noaux_tc" (V3): the same, but a group counts as the sum of its two highest choices (the report's K_r / M, 8 / 4 in
  V3), and the choices of the others become -inf (HF; DeepSeek's own code agrees, mlx-lm's fills in 0).

topk_weight = scores of the chosen, without bias; divided by (their sum + 1e-20) if norm_topk_prob; times
routed_scaling_factor. Among equal choices the lowest index wins, among equal groups too; each row is sorted by falling
choice. NaN counts as -inf, so that the indices stay valid whatever the logits hold.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

ISAS = ("plain", "avx2")
TOLERANCE = {"rtol": 3e-6, "atol": 1e-12}
SCORING_FUNCS = ("sigmoid", "softmax")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


def check(n_experts: int, top_k: int, n_group: int, topk_group: int, scoring_func: str, topk_method: str) -> None:
    """Raises ValueError for settings that no router can have. The other implementations call it too."""
    if scoring_func not in SCORING_FUNCS or topk_method not in TOPK_METHODS:
        raise ValueError(f"unknown scoring_func {scoring_func!r} or topk_method {topk_method!r}")
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k {top_k} of {n_experts} experts")
    if topk_method != "greedy" and not (1 <= topk_group <= n_group and n_experts % n_group == 0):
        raise ValueError(f"{n_experts} experts do not make {n_group} groups of which {topk_group} stay")


def _highest(choice: np.ndarray, n: int) -> np.ndarray:
    """Indices of the n highest entries of each row, falling, lowest index first among equals: (T, n)."""
    return np.argsort(-np.where(np.isnan(choice), -np.inf, choice), axis=1, kind="stable")[:, :n]


def _scores(logits: np.ndarray, scoring_func: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        if scoring_func == "sigmoid":
            return np.float32(1) / (np.float32(1) + np.exp(-logits))
        exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return exps / exps.sum(axis=1, keepdims=True)


def _kept(choice: np.ndarray, n_group: int, topk_group: int, n_counted: int) -> np.ndarray:
    """Which experts are in the topk_group best groups, a group being the sum of its n_counted best: bool (T, E)."""
    grouped = choice.reshape(choice.shape[0], n_group, choice.shape[1] // n_group)
    best = -np.sort(-np.where(np.isnan(grouped), -np.inf, grouped), axis=2)[:, :, :n_counted]
    groups = np.zeros(grouped.shape[:2], bool)
    np.put_along_axis(groups, _highest(best.sum(axis=2), topk_group), True, axis=1)
    return np.repeat(groups, grouped.shape[2], axis=1)


def reference(
    logits: np.ndarray,
    bias: np.ndarray | None,
    top_k: int,
    n_group: int,
    topk_group: int,
    scoring_func: str,
    topk_method: str,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
    *,
    n_threads: int,
) -> None:
    check(logits.shape[1], top_k, n_group, topk_group, scoring_func, topk_method)
    scores = _scores(logits, scoring_func)
    choice = scores if bias is None else scores + bias
    if topk_method == "noaux_tc":
        choice = np.where(_kept(choice, n_group, topk_group, 2), choice, np.float32(-np.inf))
    elif topk_method == "group_limited_greedy":
        kept = _kept(choice, n_group, topk_group, 1)
        choice, scores = np.where(kept, choice, np.float32(0)), np.where(kept, scores, np.float32(0))
    topk_idx[...] = _highest(choice, top_k)
    weight = np.take_along_axis(scores, topk_idx.astype(np.int64), axis=1)
    if norm_topk_prob:
        weight = weight / (weight.sum(axis=1, keepdims=True) + np.float32(1e-20))
    topk_weight[...] = weight * np.float32(routed_scaling_factor)


def cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """V3, Moonlight, V2-Lite and V2 routers, ragged numbers of experts, ties, NaN, no bias, negative bias."""
    routers = (
        (256, True, 8, 8, 4, "sigmoid", "noaux_tc", True, 2.5),
        (64, True, 6, 1, 1, "sigmoid", "noaux_tc", True, 2.446),
        (64, False, 6, 1, 1, "softmax", "greedy", False, 1.0),
        (160, False, 6, 8, 3, "softmax", "group_limited_greedy", False, 16.0),
        (30, True, 5, 3, 2, "sigmoid", "noaux_tc", True, 1.0),
        (7, False, 7, 7, 7, "softmax", "group_limited_greedy", True, 1.0),
        (5, False, 1, 1, 1, "sigmoid", "greedy", False, 0.5),
    )
    for n_experts, has_bias, top_k, *rest in routers:
        bias = rng.standard_normal(n_experts, dtype=np.float32) - np.float32(1) if has_bias else None
        for n_tokens in (0, 1, 33):
            logits = rng.standard_normal((n_tokens, n_experts), dtype=np.float32)
            for given in (logits, np.round(logits)):  # rounded: many ties
                weight = np.empty((n_tokens, top_k), np.float32)
                tie_free_bias = None if bias is None or given is not logits else bias
                yield given, tie_free_bias, top_k, *rest, np.empty((n_tokens, top_k), np.int32), weight
    broken = np.full((3, 16), np.nan, np.float32)
    broken[1, 5], broken[2] = 1, -np.inf
    yield (
        broken,
        None,
        3,
        4,
        2,
        "sigmoid",
        "noaux_tc",
        False,
        1.0,
        np.empty((3, 3), np.int32),
        np.empty((3, 3), np.float32),
    )


def cost(
    logits: np.ndarray,
    bias: np.ndarray | None,
    top_k: int,
    n_group: int,
    topk_group: int,
    scoring_func: str,
    topk_method: str,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    topk_idx: np.ndarray,
    topk_weight: np.ndarray,
) -> tuple[int, int]:
    return logits.nbytes + topk_idx.nbytes + topk_weight.nbytes, 25 * logits.size
