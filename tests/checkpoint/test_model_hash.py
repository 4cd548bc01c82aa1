"""The hash of a model: another for every other model, and of the checkpoint's files alone."""

import os
import shutil
from pathlib import Path

from deepzig.checkpoint.model_hash import hash_of_model

GOLDEN = Path(__file__).parents[1] / "golden"


def test_another_model_is_another_hash(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    original = hash_of_model(folder)
    assert original == hash_of_model(GOLDEN / "v3_classic") != hash_of_model(GOLDEN / "v3_fp8")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert hash_of_model(folder) != original
    (folder / "model.safetensors").write_bytes((GOLDEN / "v3_classic" / "model.safetensors").read_bytes())
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert hash_of_model(folder) != original


def test_only_files_of_the_checkpoint_are_hashed(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "nowhere.safetensors").symlink_to("nowhere")
    assert hash_of_model(folder) == hash_of_model(GOLDEN / "v3_classic")
