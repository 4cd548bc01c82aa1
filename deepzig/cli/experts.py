"""The expert load of a text, as `deepzig info --experts` shows it: a line for each layer with a bar for each expert, or
JSON.

Called by `info`; calls `evaluate.expert_load`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepzig.cli.progress import token_progress
from deepzig.cli.text_files import read_text

if TYPE_CHECKING:
    from deepzig.evaluate.expert_load import ExpertLoad, LayerLoad

BARS = "▁▂▃▄▅▆▇█"
MAX_BARS = 64  # more experts than that share bars


def expert_load(model: str, text: Path) -> "ExpertLoad":
    """Load the model and run the text. Raises click.UsageError if the file is no text."""
    from deepzig.engine.loading import load
    from deepzig.evaluate.expert_load import measure_experts

    content = read_text(text)
    llm = load(model)
    with token_progress("info") as update:
        return measure_experts(llm, content, progress=update)


def as_object(load: "ExpertLoad") -> dict[str, Any]:
    """The object that --json prints under "expert_load"."""
    return {
        "tokens": load.n_tokens,
        "layers": [
            {
                "layer": layer.layer,
                "unused": layer.n_unused,
                "busiest": layer.busiest,
                "peak": layer.peak,
                "effective": layer.n_effective,
                "tokens": layer.tokens.tolist(),
                "weight": layer.weight.tolist(),
            }
            for layer in load.layers
        ],
    }


def lines(load: "ExpertLoad") -> Iterator[str]:
    """A table for people: the bars of a line show the tokens of its experts, relative to the busiest."""
    yield f"expert load of {load.n_tokens} tokens, {load.experts_per_token} of {load.n_experts} experts each"
    yield "layer  unused  effective  busiest        load of experts 0, 1, ..."
    for layer in load.layers:
        busiest = f"{layer.busiest} (x {layer.peak:.2f})"
        yield f"{layer.layer:>5}  {layer.n_unused:>6}  {layer.n_effective:>9.1f}  {busiest:<13}  {_bars(layer)}"
    yield "effective: as many equally busy experts have the same entropy; x: times the mean of all experts"


def _bars(layer: "LayerLoad") -> str:
    """A character for each expert, or for each few of many experts; `·`: no token at all."""
    per_bar = -(-len(layer.tokens) // MAX_BARS)
    groups = [layer.tokens[first : first + per_bar].mean() for first in range(0, len(layer.tokens), per_bar)]
    highest = max(groups)
    return "".join("·" if n == 0 else BARS[min(int(len(BARS) * n / highest), len(BARS) - 1)] for n in groups)
