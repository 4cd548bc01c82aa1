"""Which machine gets which layers: all of them, in order, none without, and the fullest as empty as can be."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

import deepzig
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.sizes import stored_size
from deepzig.distributed.split import layer_bytes, split_layers


def fullest(parts: list[range], sizes: list[int], rooms: list[int], first_extra: int) -> float:
    """Share of its memory that the fullest machine takes."""
    taken = [sum(sizes[layer] for layer in part) + (0 if place else first_extra) for place, part in enumerate(parts)]
    return max(nbytes / room for nbytes, room in zip(taken, rooms, strict=True))


@given(
    st.lists(st.integers(1, 100), min_size=3, max_size=8),
    st.lists(st.integers(1, 1000), min_size=1, max_size=3),
    st.integers(0, 200),
)
def test_the_fullest_machine_is_as_empty_as_any_split_makes_it(
    sizes: list[int], rooms: list[int], first_extra: int
) -> None:
    parts = split_layers(sizes, rooms, first_extra)
    assert [layer for part in parts for layer in part] == list(range(len(sizes)))
    assert len(parts) == len(rooms) and all(parts)
    possible = []
    for cuts in combinations(range(1, len(sizes)), len(rooms) - 1):
        ends = [0, *cuts, len(sizes)]
        possible.append([range(first, last) for first, last in pairwise(ends)])
    best = min(fullest(split, sizes, rooms, first_extra) for split in possible)
    assert fullest(parts, sizes, rooms, first_extra) == best


def test_a_machine_with_twice_the_memory_gets_twice_the_layers() -> None:
    assert split_layers([10] * 60, [100, 200], 0) == [range(20), range(20, 60)]
    assert split_layers([10] * 60, [100, 100], 200) == [range(20), range(20, 60)]


def test_layers_and_what_is_beside_them_are_the_whole_model() -> None:
    config = deepzig.ModelConfig.from_directory(BUNDLED["stories"])
    weights = load_weights(open_checkpoint(BUNDLED["stories"]), config)
    sizes = layer_bytes(config, weights)
    assert len(sizes) == config.num_hidden_layers and min(sizes) > 0
    expert = weights.linear["model.layers.1.mlp.experts.0.gate_proj"]
    assert sizes[1] > 3 * config.n_routed_experts * expert.nbytes
    assert 0 < stored_size(config, weights).nbytes - sum(sizes) < stored_size(config, weights).nbytes
