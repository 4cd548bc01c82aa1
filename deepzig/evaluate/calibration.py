"""calibrate: how large the inputs of each linear layer and each routed expert are on a text.

Called by the command line and the bench before a conversion; calls `windows` and a loaded model. During a run each
layer is wrapped, as by a forward hook, in an object that passes calls on and adds up squares.

The converter gets, for each matrix, the root of the mean square of each input column, scaled to a mean of 1: the weight
of that column's squared error when the scale of an int4 group is searched. The exact weight, for inputs without
correlation, would be the mean square itself; its root measured better, since it depends less on a short text.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepzig import _kernels
from deepzig.checkpoint.names import HEAD
from deepzig.engine.llm import LLM
from deepzig.engine.rows import sequence_rows
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.errors import NonFiniteLogitsError
from deepzig.evaluate.windows import windows_of
from deepzig.model.linear import Linear
from deepzig.model.moe import MoE
from deepzig.model.workspace import Step

MIN_IMPORTANCE = 1e-3  # least weight of a column, the mean being 1: a text that never uses it proves little


@dataclass(frozen=True)
class Calibration:
    """Statistics of a text.

    importance    module path -> f32 (K,), mean 1
    never_used    module paths of routed experts that no token was sent to
    tokens        that were run
    """

    importance: dict[str, np.ndarray]
    never_used: list[str]
    tokens: int


def calibrate(
    llm: LLM, text: str, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Calibration:
    """Run `text` through the model, MTP layers included, and measure. Raises as `perplexity.evaluate`."""
    windows = [window.token_ids for window in windows_of(llm, text)[0]]
    total = sum(map(len, windows))
    sums = _Sums()
    done = 0
    with _watched(llm, sums):
        for token_ids in windows:
            _run(llm, token_ids, sums)
            done += len(token_ids)
            progress(done, total)
    experts = [f"{path}.experts.{e}" for path, moe in _moe_layers(llm) for e in range(len(moe.experts))]
    never_used = [expert for expert in experts if f"{expert}.gate_proj" not in sums.squares]
    return Calibration(sums.importance(), never_used, done)


def _run(llm: LLM, token_ids: np.ndarray, sums: "_Sums") -> None:
    """Run all layers on one window, without the head's product; expanded attention, where kv_b_proj is a product."""
    cache = llm.model.make_cache(len(token_ids))
    hidden = np.concatenate(list(forward_chunks(llm.model, token_ids, cache, form="expanded")))
    sums.add(HEAD, hidden)
    for depth in range(len(llm.model.mtp_layers)):
        if len(token_ids) > depth + 1:
            rows = sequence_rows(0, len(token_ids) - depth - 1, cache)
            following = token_ids[depth + 1 :]
            hidden = llm.model.mtp_forward(depth, following, hidden[: rows.n_rows], rows, cache, form="expanded")


class _Sums:
    """Sums of squares and counts, by module path."""

    def __init__(self) -> None:
        self.squares: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, path: str, x: np.ndarray) -> None:
        """Add x f32 (T, K), inputs of the module. Raises NonFiniteLogitsError if they are not finite."""
        squares = np.einsum("tk,tk->k", x, x, dtype=np.float64)
        if not np.isfinite(squares).all():
            raise NonFiniteLogitsError(f"{path} is given NaN or infinity; look at the files with `deepzig verify`")
        self.squares[path] = self.squares.get(path, 0) + squares
        self._counts[path] += len(x)

    def importance(self) -> dict[str, np.ndarray]:
        """The importance of `Calibration`."""
        found = {}
        for path, squares in self.squares.items():
            size = np.sqrt(squares / self._counts[path])
            mean = size.mean()
            if mean > 0:
                found[path] = np.maximum(size / mean, MIN_IMPORTANCE).astype(np.float32)
        return found


class _Watched:
    """Stands in for a layer: passes calls on, then reports the input and other arguments to `seen`."""

    def __init__(self, layer: Any, seen: Callable[..., None]) -> None:
        self._layer, self._seen = layer, seen

    def __call__(self, x: np.ndarray, *rest: Any) -> np.ndarray:
        given = x.copy()  # the layer may overwrite it with its result
        result: np.ndarray = self._layer(x, *rest)
        self._seen(given, *rest)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


@contextmanager
def _watched(llm: LLM, sums: _Sums) -> Iterator[None]:
    """Within this context all linear layers and routed experts of the model report their inputs."""
    places = list(_linears(llm))
    routed = [(owner, path) for owner, path in _mlp_owners(llm) if isinstance(owner.mlp, MoE)]
    originals = [(owner, "mlp", owner.mlp) for owner, _ in routed]
    originals += [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, path in places:
            setattr(owner, name, _Watched(getattr(owner, name), _linear_observer(sums, path)))
        for owner, path in routed:
            owner.mlp = _Watched(owner.mlp, _expert_observer(sums, path, owner.mlp, llm.model.n_threads))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _linear_observer(sums: _Sums, path: str) -> Callable[..., None]:
    return lambda x, *_: sums.add(path, x)


def _expert_observer(sums: _Sums, path: str, moe: MoE, n_threads: int) -> Callable[..., None]:
    """Reports the tokens of each expert as inputs of gate_proj and up_proj; computes the inputs of down_proj again."""

    def observe(x: np.ndarray, step: Step, *_: Any) -> None:
        for e in range(len(moe.experts)):
            given = x[(step.space.topk_idx == e).any(axis=1)]  # f32 (T, D)
            if len(given):
                gate, up = (
                    Linear(weight, None, n_threads)(given, np.empty((len(given), weight.shape[0]), np.float32))
                    for weight in (moe.experts.gate_proj[e], moe.experts.up_proj[e])
                )
                sums.add(f"{path}.experts.{e}.gate_proj", given)
                sums.add(f"{path}.experts.{e}.up_proj", given)
                _kernels.swiglu(gate, up, gate, n_threads=n_threads)
                sums.add(f"{path}.experts.{e}.down_proj", gate)

    return observe


def _mlp_owners(llm: LLM) -> Iterator[tuple[Any, str]]:
    """Each decoder layer and the path of its MLP; including the layers of MTP layers."""
    decoders = [*llm.model.layers, *(mtp.layer for mtp in llm.model.mtp_layers)]
    for index, decoder in enumerate(decoders):
        yield decoder, f"model.layers.{index}.mlp"


def _moe_layers(llm: LLM) -> Iterator[tuple[str, MoE]]:
    for owner, path in _mlp_owners(llm):
        if isinstance(owner.mlp, MoE):
            yield path, owner.mlp


def _linears(llm: LLM) -> Iterator[tuple[Any, str, str]]:
    """Owner, attribute and module path of each linear layer."""
    for owner, path in _mlp_owners(llm):
        layer = path.removesuffix(".mlp")
        yield from _linear_attributes(owner.self_attn, f"{layer}.self_attn")
        mlp = owner.mlp
        if isinstance(mlp, MoE):
            yield from _linear_attributes(mlp.shared_experts, f"{path}.shared_experts")
        else:
            yield from _linear_attributes(mlp, path)
    for index, mtp in enumerate(llm.model.mtp_layers, len(llm.model.layers)):
        yield mtp, "eh_proj", f"model.layers.{index}.eh_proj"


def _linear_attributes(owner: Any, path: str) -> Iterator[tuple[Any, str, str]]:
    if owner is not None:
        for name, value in vars(owner).items():
            if isinstance(value, Linear):
                yield owner, name, f"{path}.{name}"
