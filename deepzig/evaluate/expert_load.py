"""measure_experts: how the routers of a model share a text among their experts.

Called by the command line; calls `windows` and the model, whose layers it watches through the observer of a step. Keeps
only sums, so that a text may be long.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepzig.engine.llm import LLM
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.errors import RequestError
from deepzig.evaluate.windows import windows_of
from deepzig.model.workspace import Workspace


@dataclass(frozen=True)
class LayerLoad:
    """The work of the experts of one layer."""

    layer: int
    tokens: np.ndarray  # i64 (E,), for how many tokens each expert was chosen
    weight: np.ndarray  # f64 (E,), sum of its weights for them

    @property
    def n_unused(self) -> int:
        """Experts that no token was sent to."""
        return int((self.tokens == 0).sum())

    @property
    def busiest(self) -> int:
        """The expert with most tokens."""
        return int(self.tokens.argmax())

    @property
    def peak(self) -> float:
        """Tokens of the busiest expert / mean of all: 1 is perfect balance, E / K the same experts for all tokens."""
        return float(self.tokens.max() / self.tokens.mean())

    @property
    def n_effective(self) -> float:
        """exp of the entropy of the load: this many experts with equal load would have the same entropy."""
        share = self.tokens[self.tokens > 0] / self.tokens.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True)
class ExpertLoad:
    """The load of every MoE layer on a text."""

    n_tokens: int  # each counted once, BOS left out
    n_experts: int  # E
    experts_per_token: int  # K
    layers: list[LayerLoad]


def measure_experts(
    llm: LLM, text: str, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> ExpertLoad:
    """Run a text through the model, in windows as `perplexity.evaluate`. progress gets the tokens done and all tokens.

    Raises:
        RequestError: no tokenizer, no tokens, or a model without experts.
    """
    config = llm.config
    if not config.moe_layers:
        raise RequestError(f"{llm.name} has no layer with experts; there is no load to show")
    loads = [LayerLoad(layer, *_zeros(config.n_routed_experts)) for layer in config.moe_layers]
    by_layer = {load.layer: load for load in loads}

    first = 0  # first row of the step that counts; those before it are context

    def observe(layer: int, _hidden: np.ndarray, space: Workspace) -> None:
        if load := by_layer.get(layer):
            chosen = space.topk_idx[first:].ravel()
            load.tokens[:] += np.bincount(chosen, minlength=config.n_routed_experts)
            load.weight[:] += np.bincount(chosen, space.topk_weight[first:].ravel(), config.n_routed_experts)

    windows, _ = windows_of(llm, text)
    total = sum(w.n_predicted for w in windows)
    done = 0
    for w in windows:
        first = w.first_predicted
        cache = llm.model.make_cache(len(w.token_ids))
        list(forward_chunks(llm.model, w.token_ids, cache, chunk_size=len(w.token_ids), observer=observe))
        done += w.n_predicted
        progress(done, total)
    return ExpertLoad(done, config.n_routed_experts, config.num_experts_per_tok, loads)


def _zeros(n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(n_experts, np.int64), np.zeros(n_experts, np.float64)
