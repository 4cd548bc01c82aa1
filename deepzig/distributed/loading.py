"""load_distributed: a model's folder as an LLM whose layers are on several machines.

Called by users and `cli`; calls `engine.loading` for all but the network, `ray_cluster` for machines, `split` to divide
the layers, and makes a `crew` and a `pipeline` of them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepzig.checkpoint.loader import ModelWeights
from deepzig.checkpoint.sizes import ModelSize
from deepzig.config import ModelConfig
from deepzig.distributed.crew import Crew, Machine
from deepzig.distributed.pipeline import PipelineModel
from deepzig.distributed.ray_cluster import RayCluster
from deepzig.distributed.split import layer_bytes, split_layers
from deepzig.distributed.worker import check_same, facts_here
from deepzig.engine.llm import LLM
from deepzig.engine.loading import LoadOptions, build_llm
from deepzig.engine.memory_need import Share, cache_bytes_per_token, cache_tokens
from deepzig.errors import RequestError
from deepzig.model.deepseek import DeepseekModel

log = logging.getLogger("deepzig.distributed")


def load_distributed(model: str | Path, n_machines: int, **arguments: Any) -> LLM:
    """Load a model whose layers are on several machines of the Ray cluster that this machine belongs to.

    Each machine maps the weights of its layers from its own disk. They work one after the other, so an answer is no
    faster than on one machine with all the memory; the chunks of a long prompt go through all of them at once.

    Args:
        model: as for `load`. The folder must be on each machine, at the same path.
        n_machines: number of machines, including this one.
        arguments: the others of `load`. n_threads None takes each machine's own number; cache_bytes is the sum of all
            machines.

    Raises:
        RequestError: n_machines is below 2 or above the number of layers; Ray is not installed; or as `load`.
        ClusterError: this machine is in no cluster, the cluster is too small, or a machine has another model or another
            version of deepzig.
        ConfigError, CheckpointError, TokenizerError, NetworkError, ResourceError: as `load`, on any machine.
    """
    if n_machines < 2:
        raise RequestError(f"n_machines {n_machines} is below 2; load takes a model for one")

    def make_network(
        directory: Path, config: ModelConfig, weights: ModelWeights, size: ModelSize, options: LoadOptions
    ) -> tuple[DeepseekModel, int]:
        machines = RayCluster().machines(n_machines - 1, directory.absolute())
        return network_over(machines, directory, config, weights, size, options)

    return build_llm(model, LoadOptions(**arguments), make_network)


def network_over(
    machines: Sequence[Machine],
    directory: Path,
    config: ModelConfig,
    weights: ModelWeights,
    size: ModelSize,
    options: LoadOptions,
) -> tuple[PipelineModel, int]:
    """The network on this machine and others, and how many tokens its cache holds.

    Raises as `load_distributed`.
    """
    if len(machines) >= config.num_hidden_layers:
        n_layers = config.num_hidden_layers
        raise RequestError(f"n_machines {len(machines) + 1} is above the {n_layers} layers of the model")
    here = facts_here(directory)
    asked = [machine.start("facts") for machine in machines]
    facts = [machine.result(each) for machine, each in zip(machines, asked, strict=True)]
    for machine, its in zip(machines, facts, strict=True):
        check_same(machine.name, here, its)
    of_layers = layer_bytes(config, weights)
    extra = size.nbytes - sum(of_layers)  # embedding, head, norms and MTP layers
    all_facts = [here, *facts]
    parts = split_layers(of_layers, [its.available for its in all_facts], extra)
    n_mtp = config.num_nextn_predict_layers if weights.has_mtp else 0
    of_row = cache_bytes_per_token(config, options.cache_dtype, with_mtp=False) // config.num_hidden_layers
    shares = [
        Share(
            weights=sum(of_layers[part.start : part.stop]) + (0 if place else extra),
            cache_per_token=of_row * (len(part) + (0 if place else n_mtp)),
            available=its.available,
            allocatable=its.allocatable,
            machine=machines[place - 1].name if place else "",
        )
        for place, (part, its) in enumerate(zip(parts, all_facts, strict=True))
    ]
    n_tokens = cache_tokens(config, shares, options.cache_bytes, size.bytes_per_token)
    for part, share in zip(parts, shares, strict=True):
        where = share.machine or "this machine"
        log.info("layers %d to %d, %.1f GB: %s", part.start, part.stop - 1, share.weights / 1e9, where)
    crew = Crew(machines, parts[1:], options, here)
    return PipelineModel(config, weights, crew, parts[0], **options.computing), n_tokens
