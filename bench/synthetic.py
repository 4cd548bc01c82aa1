"""Writes checkpoints of a DeepSeek-V3-shaped model with random weights, in each format, for the bench.

Called by `model`, `peers` and `gguf_file`, and by hand: `python -m bench.synthetic int8 --layers 9`, or with the sizes
of a published model, `--config tests/published/DeepSeek-V2-Lite/config.json`. Calls `random_weights`, and `checkpoint`
for names and the writer. The text of such a model means nothing; its speed and memory are those of a real one.
"""

import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np

from bench.random_weights import RandomWeights, Scheme, Window, scheme_for
from deepzig.checkpoint.names import EMBEDDING, HEAD, expected_tensors
from deepzig.checkpoint.reader import DTYPE_NAMES
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.config import ModelConfig
from deepzig.errors import ResourceError

FORMATS = ("bf16", "fp8", "int8", "int4")
REVISION = 1  # of what this file writes; a checkpoint of another one is written anew
SPARE_BYTES = 1 << 30  # stays free on the disk

# The model of docs/performance.md: 5.3 billion parameters with 9 layers, 1.0 billion of them at work for a token.
ARCHITECTURE: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_attention_heads": 16, "num_key_value_heads": 16,
    "n_shared_experts": 2, "n_routed_experts": 64, "routed_scaling_factor": 2.5, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu", "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip

@dataclass(frozen=True)
class Synthetic:
    """Which checkpoint: format of FORMATS; number of layers, with or without the layer for multi-token prediction; or
    `published`, a config.json whose model it resembles, all layers and no MTP."""

    format: str
    n_layers: int
    with_mtp: bool = False
    published: Path | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        if self.published is not None:
            return f"{self.published.resolve().parent.name}-{self.format}"
        return f"v3-{self.n_layers}l-{self.format}{'-mtp' if self.with_mtp else ''}"

    def config(self) -> dict[str, Any]:
        """config.json."""
        config = {
            **ARCHITECTURE,
            "num_hidden_layers": self.n_layers,
            "num_nextn_predict_layers": int(self.with_mtp),
            "synthetic_revision": REVISION,
        }
        if self.published is not None:
            published = json.loads(self.published.read_text(encoding="utf-8"))
            published.pop("quantization_config", None)
            config = {**published, "num_nextn_predict_layers": 0, "synthetic_revision": REVISION}
        if quantization := self._quantization_config(stored_modules(config)):
            config["quantization_config"] = quantization
        return config

    def scheme_of(self, module: str, n_columns: int) -> Scheme:
        """How a module's weight is stored: DeepSeek's choice for fp8, deepzig's mix for the integers."""
        untouched = module.endswith((EMBEDDING, ".embed_tokens", ".mlp.gate", ".eh_proj"))
        is_head = module.endswith((HEAD, ".shared_head.head"))
        if untouched or (self.format == "fp8" and is_head):
            return "bf16", 0
        if self.format == "int4" and ".experts." not in module:
            return scheme_for("int8", n_columns)
        return scheme_for(self.format, n_columns)

    def _quantization_config(self, linear: dict[str, tuple[int, int]]) -> dict[str, Any] | None:
        if self.format == "bf16":
            return None
        if self.format == "fp8":
            return {
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            }  # fmt: skip
        targets: dict[Scheme, dict[str, None]] = defaultdict(dict)
        for module, (_, n_columns) in linear.items():
            pattern = re.sub(r"\\\.\d+", r"\\.\\d+", re.escape(module))
            targets[self.scheme_of(module, n_columns)][f"re:{pattern}$"] = None
        ignored = [*targets.pop(("bf16", 0))]
        groups = {
            f"group_{i}": _config_group(scheme, list(targets[scheme])) for i, scheme in enumerate(sorted(targets))
        }
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ignored, "config_groups": groups, "kv_cache_scheme": None,
        }  # fmt: skip


def default_directory() -> Path:
    """Where checkpoints are kept: $XDG_CACHE_HOME/deepzig-bench, else ~/.cache/deepzig-bench, else in $TMPDIR."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = cache if os.access(cache, os.W_OK) else Path(tempfile.gettempdir())
    return base / "deepzig-bench"


def ensure(wanted: Synthetic, directory: Path) -> Path:
    """Folder of the checkpoint below `directory`, written unless it is there and whole.

    Raises ResourceError if the disk lacks room.
    """
    folder = directory / wanted.name
    config_text = json.dumps(wanted.config(), indent=1)
    config_path = folder / "config.json"
    if config_path.exists() and config_path.read_text(encoding="utf-8") == config_text:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config_path.unlink(missing_ok=True)
    _write_weights(wanted, folder / "model.safetensors")
    temporary = config_path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(config_text, encoding="utf-8")
    os.replace(temporary, config_path)  # last: a folder with config.json is whole
    return folder


def stored_modules(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Modules with a stored weight, and their (N, K)."""
    settled = ModelConfig.from_dict(config)
    expected = expected_tensors(settled, settled.num_nextn_predict_layers)
    return {module: shape for module, shape in expected.linear.items() if module not in expected.alias}


def _config_group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    name, group_size = scheme
    return {
        "targets": targets, "format": "pack-quantized", "input_activations": None,
        "weights": {
            "num_bits": int(name.removeprefix("int")), "type": "int", "symmetric": True, "strategy": "group",
            "group_size": group_size, "dynamic": False,
        },
    }  # fmt: skip


def _write_weights(wanted: Synthetic, path: Path) -> None:
    raw_config = wanted.config()
    random_weights = RandomWeights()
    tensors = {
        f"{module}.{suffix}": tensor
        for module, shape in stored_modules(raw_config).items()
        for suffix, tensor in random_weights.tensors(module, shape, wanted.scheme_of(module, shape[1])).items()
    }
    for name, vector in vectors(ModelConfig.from_dict(raw_config)).items():
        tensors[name] = Window(vector, 0, len(vector))
    entries = [(name, DTYPE_NAMES[tensor.rows.dtype], tensor.shape) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, entries, {"format": "pt"}) as writer:
        check_room(path, writer.nbytes)
        for name in writer.order:
            writer.write(name, tensors[name].chunks())


def vectors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Norm weights of 1 and router biases small enough to leave the choice to the scores."""
    expected = expected_tensors(config, config.num_nextn_predict_layers)
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, 0.01, shape).astype(np.float32)
        if name.endswith("e_score_correction_bias")
        else np.ones(shape, ml_dtypes.bfloat16)
        for name, shape in expected.vector.items()
    }


def check_room(path: Path, nbytes: int) -> None:
    """Raise ResourceError unless the disk has room for `nbytes` at `path`."""
    free = shutil.disk_usage(path.parent).free
    if free < nbytes + SPARE_BYTES:
        need, room = f"{nbytes / 1e9:.1f} GB", f"{free / 1e9:.1f} GB"
        raise ResourceError(f"{path} needs {need}, {room} are free; make room or give another --dir")


@click.command()
@click.argument("formats", nargs=-1, required=True, type=click.Choice(FORMATS))
@click.option("--layers", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--mtp", is_flag=True, help="with the layer for multi-token prediction")
@click.option(
    "--config", "published", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a config.json: the sizes of its model, in place of ours",
)  # fmt: skip
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="parent folder; default in the user's cache")
def main(formats: tuple[str, ...], layers: int, mtp: bool, published: Path | None, directory: Path | None) -> None:
    """Write synthetic checkpoints and print their folders."""
    for name in formats:
        click.echo(ensure(Synthetic(name, layers, mtp, published), directory or default_directory()))


if __name__ == "__main__":
    main()
