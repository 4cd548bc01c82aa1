"""From the name of a model to its folder: a folder's own path, a bundled model, or a model of the hub.

Called by `engine`, `llm_plugin` and the command line; calls `directory` for a folder without a config, and `hub` only
for names of the hub that are not on this machine whole.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deepzig.errors import CheckpointError, NetworkError, RequestError, shown_bytes

if TYPE_CHECKING:
    from deepzig.checkpoint.hub import Advance, Download

BUNDLED_MODEL = "stories"  # used if no model is named
BUNDLED = {BUNDLED_MODEL: Path(__file__).parent.parent / "bundled" / "stories"}
ASKED_ABOVE = 1_000_000_000  # bytes
OFFLINE, YES = "DEEPZIG_OFFLINE", "DEEPZIG_YES"

Fetch = Callable[["Download"], Path]


def find_model(
    model: str | Path, with_weights: bool = True, fetch: Fetch | None = None, offline: bool | None = None
) -> Path:
    """The folder of a model, fetched from the hub if `model` is a name there and not on this machine.

    with_weights  False: config, tokenizer and the like are enough
    fetch         downloads, after asking if somebody is there to ask; None: `fetch_unasked`
    offline       download nothing; None: whether DEEPZIG_OFFLINE is set

    Raises:
        CheckpointError: `model` is neither a folder nor a name, or a folder of weights in another format, or is
            quantised on the hub as deepzig cannot compute.
        ConfigError, UnsupportedModelError: the model of the hub is none that deepzig runs; no weights are fetched.
        NetworkError: the hub cannot be reached or has no such model.
        RequestError: `model` is empty, or nobody agreed to so large a download.
        ResourceError: the disk has no room for it.
    """
    if not str(model).strip():  # Path("") is the folder that the program runs in
        raise RequestError("the model's name is empty; give a folder, stories, or org/name")
    directory = BUNDLED.get(str(model), Path(model))
    if os.path.isdir(directory):  # Path.is_dir raises for a name that is too long
        if not os.path.exists(directory / "config.json"):
            from deepzig.checkpoint.directory import refuse_foreign  # here, since help must not wait for NumPy

            refuse_foreign(directory)
        return directory
    if os.path.isfile(directory):
        kind = "a GGUF file, which deepzig does not read" if directory.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{str(model)!r} is {kind}; give a folder that holds config.json and safetensors")
    from deepzig.checkpoint import hub  # here, since naming a folder needs no network

    wanted = hub.HubModel.parse(str(model))
    if wanted is None:
        raise CheckpointError(
            f"{str(model)!r} is no folder and no name of a model; give a folder with config.json, stories, or org/name"
        )
    if found := hub.find(wanted, with_weights):
        return found
    if is_set(OFFLINE) if offline is None else offline:
        raise NetworkError(
            f"{hub.taken_for_a_name(wanted)}; {wanted} is not on this machine, or not whole: go on without --offline "
            f"or {OFFLINE}"
        )
    download = hub.missing(wanted, with_weights)
    if with_weights:
        hub.check_config(download)
    return (fetch or fetch_unasked)(download)


def fetch_unasked(
    download: "Download", advance: "Advance" = lambda done, total, file: None, yes: bool | None = None
) -> Path:
    """Download up to 1 GB, and more if `yes` (None: if DEEPZIG_YES is set). Else raises RequestError that tells how
    much."""
    from deepzig.checkpoint import hub

    if download.nbytes > ASKED_ABOVE and not (is_set(YES) if yes is None else yes):
        raise RequestError(
            f"{download.model} is {shown_bytes(download.nbytes)} to download to {download.folder}; "
            f"allow it with --yes or {YES}=1"
        )
    return hub.fetch(download, advance)


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
