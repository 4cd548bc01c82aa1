"""load_weights: from an open checkpoint and its config to the weights, or to one error that says all that is wrong.

Called by `engine`, `distributed`, `plan`, `verify`, `deepzig info` and the bench; calls `names` and `formats`. Names,
dtypes and shapes of all tensors are checked before the first byte of data is touched. The weights stay in the page
cache; vectors are small and decoded. Knows nothing of the forward pass.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from deepzig._kernels.weight import Weight
from deepzig.checkpoint.directory import Checkpoint
from deepzig.checkpoint.formats import FLOATS, Fault, Layout, find_fault, find_faults, make_weight, recognise
from deepzig.checkpoint.names import Expected, count_mtp_layers, expected_tensors, is_buffer
from deepzig.checkpoint.reader import TensorInfo
from deepzig.checkpoint.schemes import declared_scheme
from deepzig.config import ModelConfig
from deepzig.errors import CheckpointError, shown

N_SHOWN = 10
_CONVERTERS = {".switch_mlp.": "MLX", ".weight.absmax": "bitsandbytes"}  # part of a tensor's name -> who names so


class ExtraTensorsWarning(UserWarning):
    """The checkpoint has tensors that the config does not ask for; they are not used."""


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of a model.

    linear    module path -> Weight: "model.layers.3.self_attn.q_a_proj", "model.layers.3.mlp.experts.7.up_proj",
              "model.layers.3.mlp.gate", "model.embed_tokens", "lm_head"
    vector    tensor name -> f32: norms, biases, "model.layers.3.mlp.gate.e_score_correction_bias"
    has_mtp   whether the MTP layers are there, all that the config has, from `model.layers.{num_hidden_layers}` on

    Modules that share a matrix (tied embeddings, the MTP layer's embedding and head) share the Weight object.
    """

    linear: dict[str, Weight]
    vector: dict[str, np.ndarray]
    has_mtp: bool


def load_weights(checkpoint: Checkpoint, config: ModelConfig, strict: bool = False) -> ModelWeights:
    """Load all that `config` asks for from `checkpoint`.

    Tensors that it does not ask for are an ExtraTensorsWarning, or with `strict` an error.

    Raises:
        CheckpointError: an unsupported quantisation, some MTP layers but not all, or missing or
            misshapen tensors, all of them in one message.
    """
    declared = declared_scheme(config.quantization_config)
    n_mtp_layers = count_mtp_layers(config, checkpoint.infos)
    if 0 < n_mtp_layers < config.num_nextn_predict_layers:
        raise CheckpointError(
            f"{checkpoint.directory} holds {n_mtp_layers} of the {config.num_nextn_predict_layers} MTP layers that "
            "config.json asks for (num_nextn_predict_layers); fetch the checkpoint again, or change that number"
        )
    expected = expected_tensors(config, n_mtp_layers)
    stored = _by_module(checkpoint)
    source = {module: _stored_module(module, stored, expected) for module in expected.linear}
    layouts: dict[str, Layout] = {}
    faults: dict[str, Fault] = {}
    for module in dict.fromkeys(source.values()):
        tensors = stored.get(module, {})
        layouts[module] = recognise(module, expected.linear[module], tensors, declared)
        faults.update((fault.name, fault) for fault in find_faults(module, layouts[module], tensors))
    for name, shape in expected.vector.items():
        faults.update((fault.name, fault) for fault in find_fault(name, checkpoint.infos.get(name), FLOATS, shape))
    if faults:
        raise CheckpointError(_report(checkpoint, list(faults.values())))
    _report_extra(checkpoint, layouts, expected, strict)
    weights = {module: _weight(checkpoint, module, expected, layout) for module, layout in layouts.items()}
    return ModelWeights(
        linear={module: weights[source[module]] for module in expected.linear},
        vector={name: checkpoint.array(name).astype(np.float32) for name in expected.vector},
        has_mtp=n_mtp_layers > 0,
    )


def _by_module(checkpoint: Checkpoint) -> dict[str, dict[str, TensorInfo]]:
    """Module path -> last part of the name -> tensor."""
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in checkpoint.infos.items():
        module, _, suffix = name.rpartition(".")
        modules[module][suffix] = info
    return dict(modules)


def _stored_module(module: str, stored: dict[str, dict[str, TensorInfo]], expected: Expected) -> str:
    """`module`, or the first of its aliases that is stored."""
    tried: list[str] = []
    while module not in stored and module in expected.alias and module not in tried:
        tried.append(module)
        module = expected.alias[module]
    return module


def _weight(checkpoint: Checkpoint, module: str, expected: Expected, layout: Layout) -> Weight:
    suffixes = (layout.codes, layout.scale) if layout.scale else (layout.codes,)
    tensors = {suffix: checkpoint.array(f"{module}.{suffix}") for suffix in suffixes}
    return make_weight(expected.linear[module], layout, tensors)


def _report(checkpoint: Checkpoint, faults: list[Fault]) -> str:
    count = f"{len(faults)} tensor{'s are' if len(faults) > 1 else ' is'} missing or not as config.json asks"
    listed = "; ".join(str(fault) for fault in faults[:N_SHOWN])
    more = f"; and {len(faults) - N_SHOWN} more" if len(faults) > N_SHOWN else ""
    return f"{checkpoint.directory}: {count}: {listed}{more}; {_advice(checkpoint)}"


def _advice(checkpoint: Checkpoint) -> str:
    for part, converter in _CONVERTERS.items():
        if any(part in name for name in checkpoint.infos):
            return f"{converter} has converted it; take the original checkpoint"
    return "fetch the checkpoint and its config.json again"


def _report_extra(checkpoint: Checkpoint, layouts: dict[str, Layout], expected: Expected, strict: bool) -> None:
    used = {f"{module}.{suffix}" for module, layout in layouts.items() for suffix in layout.tensors}
    used.update(expected.vector)
    extra = [name for name in checkpoint.infos if name not in used and not is_buffer(name)]
    if not extra:
        return
    count = f"{len(extra)} tensor{'s' if len(extra) > 1 else ''} that config.json does not ask for"
    message = f"{checkpoint.directory} has {count}: {_listed(extra)}"
    if strict:
        raise CheckpointError(f"{message}; load without strict to ignore")
    warnings.warn(f"{message}; ignored", ExtraTensorsWarning, stacklevel=3)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else ""
    return ", ".join(shown(name) for name in names[:N_SHOWN]) + more
