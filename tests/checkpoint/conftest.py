"""Small models for the tests of conversion, written anew for each session."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.names import expected_tensors
from deepzig.checkpoint.reader import DTYPE_NAMES
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.config import ModelConfig

# Widths that 128, 64 and 32 divide, and one that none divides (q_lora_rank).
SMALL: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192,
    "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 40, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "max_position_embeddings": 128, "num_nextn_predict_layers": 1, "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
}  # fmt: skip


def small_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """bf16 matrices and norms, f32 correction biases; the MTP layer has copies of embedding and head."""
    rng = np.random.default_rng(5)
    expected = expected_tensors(config, config.num_nextn_predict_layers)
    tensors: dict[str, np.ndarray] = {}
    for module, shape in expected.linear.items():
        if module not in expected.alias:
            matrix = rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1]))
            tensors[f"{module}.weight"] = matrix.astype(ml_dtypes.bfloat16)
    for module, main in expected.alias.items():
        if f"{main}.weight" in tensors:
            tensors[f"{module}.weight"] = tensors[f"{main}.weight"]
    for name, size in expected.vector.items():
        values = rng.standard_normal(size, np.float32)
        is_bias = name.endswith("correction_bias")
        tensors[name] = 0.1 * values if is_bias else (1 + 0.1 * values).astype(ml_dtypes.bfloat16)
    return tensors


def write_model(directory: Path, raw_config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw_config), encoding="utf-8")
    entries = [(name, DTYPE_NAMES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()]
    with SafetensorsWriter(directory / "model.safetensors", entries) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return directory


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SMALL, and the files that model folders have beside their weights."""
    directory = tmp_path_factory.mktemp("small")
    write_model(directory, SMALL, small_tensors(ModelConfig.from_dict(SMALL)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        (directory / name).write_text(f"of {name}", encoding="utf-8")
    (directory / "modeling_deepseek.py").write_text("raise SystemExit", encoding="utf-8")
    (directory / "tokenization_deepseek.py").write_text("raise SystemExit", encoding="utf-8")
    (directory / "training_log.txt").write_text("not for us", encoding="utf-8")
    return directory


Edit = Callable[[Path, Path, dict[str, np.ndarray | None]], Path]


@pytest.fixture(scope="session")
def edited() -> Edit:
    """edited(source, destination, {name: tensor or None}): a copy of a model, tensors replaced or left out."""

    def edit(source: Path, destination: Path, changes: dict[str, np.ndarray | None]) -> Path:
        shutil.copytree(source, destination)
        stored = open_checkpoint(source)
        tensors = {name: stored.array(name) for name in stored.infos} | changes
        raw_config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        return write_model(destination, raw_config, {name: t for name, t in tensors.items() if t is not None})

    return edit
