"""Which machine gets which layers. Called by `loading`; knows numbers only."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from deepzig.checkpoint.loader import ModelWeights
from deepzig.config import ModelConfig


def layer_bytes(config: ModelConfig, weights: ModelWeights) -> list[int]:
    """Bytes of the matrices of each decoder layer, as stored."""
    total = [0] * config.num_hidden_layers
    for module, weight in weights.linear.items():
        parts = module.split(".")
        if parts[:2] == ["model", "layers"] and int(parts[2]) < len(total):
            total[int(parts[2])] += weight.nbytes
    return total


def split_layers(sizes: Sequence[int], rooms: Sequence[int], first_extra: int) -> list[range]:
    """Consecutive layers for each machine, so that the fullest machine is as empty as possible.

    Args:
        sizes: bytes of each layer, at least as many as there are machines.
        rooms: bytes of memory of each machine.
        first_extra: bytes that the first machine has beside its layers.

    Returns:
        For each machine its layers, at least one.
    """
    n_layers, before = len(sizes), [0, *accumulate(sizes)]
    fullest = [[float("inf")] * (n_layers + 1) for _ in rooms]  # [machine][layers placed]: share of memory taken
    begin = [[0] * (n_layers + 1) for _ in rooms]  # where the machine's layers begin in that case
    for machine, room in enumerate(rooms):
        for end in range(machine + 1, n_layers + 1):
            for first in [0] if machine == 0 else range(machine, end):
                nbytes = before[end] - before[first] + (first_extra if machine == 0 else 0)
                share = max(nbytes / max(room, 1), fullest[machine - 1][first] if machine else 0.0)
                if share < fullest[machine][end]:
                    fullest[machine][end], begin[machine][end] = share, first
    ends = [n_layers]
    for machine in range(len(rooms) - 1, -1, -1):
        ends.append(begin[machine][ends[-1]])
    return [range(first, last) for first, last in pairwise(reversed(ends))]
