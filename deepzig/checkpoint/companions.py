"""The small files beside the weights that a model needs: tokenizer, templates, defaults, licence.

Called by `convert`, which copies them, and by `hub`, which fetches them. Knows nothing of what is in them.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from deepzig.checkpoint.directory import is_within
from deepzig.errors import CheckpointError, shown
from deepzig.small_files import read_small

_PATTERNS = (
    "tokenizer*", "chat_template*", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tiktoken.model", "*.tiktoken", "LICENSE*", "README*",
)  # fmt: skip
_NEVER = (".py", ".pyc", ".so", ".safetensors")  # no code, no weights
_MAX_BYTES = 1 << 28


def is_companion(name: str) -> bool:
    """Whether a file of this name in the model's own folder is one of them."""
    return not name.endswith(_NEVER) and any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def read_companions(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each, by name. Raises CheckpointError for one that is too large or outside the folder."""
    home = Path(os.path.realpath(directory))
    for path in sorted(directory.iterdir()):
        if not is_companion(path.name) or not path.is_file():
            continue
        if not is_within(path, home):
            raise CheckpointError(f"{shown(str(path))} is a link out of the folder; put the file itself there")
        yield path.name, read_small(path, _MAX_BYTES, CheckpointError)
