"""hash_of_model: tells checkpoints apart, without reading all of them.

Called by `distributed`, to check that all machines have the same model, and by `engine`, to find the prompt cache of a
model; calls `directory`.
"""

import hashlib
from pathlib import Path

from deepzig.checkpoint.directory import open_checkpoint
from deepzig.config import MAX_CONFIG_BYTES
from deepzig.errors import ConfigError
from deepzig.small_files import open_regular, read_small

SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file of weights


def hash_of_model(directory: Path) -> str:
    """SHA-256 of config.json, and of name, size and samples of each file of weights: enough to tell models apart.

    Hashing all bytes would take minutes for a large model; the header and SAMPLES places of each file are read. Raises
    ConfigError and CheckpointError as loading does.
    """
    digest = hashlib.sha256(read_small(directory / "config.json", MAX_CONFIG_BYTES, ConfigError))
    for path in open_checkpoint(directory).files:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            digest.update(f"{path.name} {size}\n".encode())
            for sample in range(SAMPLES):
                file.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
