"""Models of the Hugging Face hub, `org/name` or `org/name@revision`: which of their files are on this machine, and
downloads.

Called by `model_names`, so that nothing is downloaded unless somebody gives such a name, and by `cli.options` once a
user has agreed. Calls huggingface_hub, which keeps the files (HF_HOME), resumes connections that break off, and reads
its address from HF_ENDPOINT and its token from HF_TOKEN; `config` and `schemes` look at config.json before the rest is
fetched. Files that an interrupted run has fetched stay. Code and files in subfolders are never fetched.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig.checkpoint.companions import is_companion
from deepzig.checkpoint.directory import INDEX_FILE, SINGLE_FILE
from deepzig.checkpoint.reader import MAX_HEADER_BYTES
from deepzig.checkpoint.safe_files import NO_ROOM
from deepzig.checkpoint.schemes import declared_scheme
from deepzig.config import MAX_CONFIG_BYTES, ModelConfig
from deepzig.errors import CheckpointError, ConfigError, NetworkError, ResourceError, shown_bytes
from deepzig.small_files import read_small

MAIN = "main"
_SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.safetensors$")  # of several
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")

Advance = Callable[[int, int, str], None]  # bytes done, bytes in all, file


@dataclass(frozen=True)
class HubModel:
    """A model's name on the hub."""

    repository: str
    revision: str = MAIN  # branch, tag or commit

    @classmethod
    def parse(cls, name: str) -> "HubModel | None":
        """The model that `name` names; None if it is no such name."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        match = _NAME.fullmatch(name)
        if match is None:
            return None
        try:
            validate_repo_id(match[1])
        except HFValidationError:  # too long, or with .. or --
            return None
        return cls(match[1], match[2] or MAIN)

    def __str__(self) -> str:
        return self.repository if self.revision == MAIN else f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Download:
    """What is missing of a model on this machine."""

    model: HubModel
    commit: str
    files: dict[str, int]  # name -> bytes; config.json last, which makes the model known here
    folder: Path  # where the hub's files are kept

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def find(model: HubModel, with_weights: bool) -> Path | None:
    """The folder of a model that is whole on this machine, else None. Uses no network."""
    import huggingface_hub

    config = huggingface_hub.try_to_load_from_cache(model.repository, "config.json", revision=model.revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    return directory if not with_weights or _has_weights(directory) else None


def missing(model: HubModel, with_weights: bool) -> Download:
    """Ask the hub what a model consists of. Raises NetworkError."""
    import huggingface_hub
    from huggingface_hub import constants

    unreachable = f"{taken_for_a_name(model)}; cannot ask {constants.ENDPOINT}"
    with _network_errors(model, unreachable, "check the network (HTTPS_PROXY and HF_ENDPOINT count)"):
        info = huggingface_hub.HfApi().model_info(model.repository, revision=model.revision, files_metadata=True)
    commit = str(info.sha)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename, with_weights)}
    if "config.json" not in sizes:
        raise NetworkError(f"{model} of {constants.ENDPOINT} has no config.json: no model that deepzig can run")
    if INDEX_FILE in sizes:
        sizes.pop(SINGLE_FILE, None)
    elif SINGLE_FILE in sizes:  # without an index, no other file of weights is read beside it
        sizes = {name: size for name, size in sizes.items() if name == SINGLE_FILE or not name.endswith(".safetensors")}
    ordered = sorted(sizes, key=lambda name: (name == "config.json", name.endswith(".safetensors"), name))
    here = {name for name in ordered if _is_here(model, commit, name)}
    files = {name: sizes[name] for name in ordered if name not in here or name == "config.json"}
    return Download(model, commit, files, Path(constants.HF_HUB_CACHE))


def check_config(download: Download) -> None:
    """Read config.json before the rest is fetched, in a place apart: in its folder it would say that all the rest is
    there.

    Raises:
        ConfigError, UnsupportedModelError, CheckpointError: deepzig cannot run the model, or not its quantisation.
        NetworkError: as `fetch`.
    """
    import huggingface_hub
    from huggingface_hub import constants

    model, nbytes = download.model, download.files["config.json"]
    if nbytes > MAX_CONFIG_BYTES:  # nobody has agreed to a download yet
        raise ConfigError(f"config.json of {model} has {nbytes} bytes, as no real one has; take another model")
    cannot = f"cannot fetch config.json of {model} from {constants.ENDPOINT}"
    with _network_errors(model, cannot, "give the same command again"), tempfile.TemporaryDirectory() as folder:
        silent = _bar_of(lambda done, total, file: None, 0, 0, "config.json")
        huggingface_hub.hf_hub_download(
            model.repository, "config.json", revision=download.commit, local_dir=folder, tqdm_class=silent
        )
        try:
            config = ModelConfig.from_directory(folder)
        except ConfigError as error:
            raise type(error)(str(error).replace(f"{folder}/config.json", f"config.json of {model}")) from error
    declared_scheme(config.quantization_config)


def fetch(download: Download, advance: Advance = lambda done, total, file: None) -> Path:
    """Bring the files to this machine. Returns the model's folder.

    Raises:
        NetworkError: the hub cannot be reached or refuses.
        ResourceError: the disk has no room.
    """
    import huggingface_hub
    from huggingface_hub import constants

    _check_room(download)
    done, model = 0, download.model
    for name, size in download.files.items():
        revision = model.revision if name == "config.json" else download.commit
        cannot = f"cannot fetch {model} from {constants.ENDPOINT}"
        with _network_errors(model, cannot, "give the same command again: whole files stay"):
            path = huggingface_hub.hf_hub_download(
                model.repository, name, revision=revision, tqdm_class=_bar_of(advance, done, download.nbytes, name)
            )
        done += size
        advance(done, download.nbytes, name)
    return Path(path).parent


def _is_wanted(name: str, with_weights: bool) -> bool:
    if "/" in name:
        return False
    if name.endswith(".safetensors"):
        return with_weights
    return name in ("config.json", INDEX_FILE) or is_companion(name)


def _is_here(model: HubModel, commit: str, name: str) -> bool:
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(model.repository, name, revision=commit), str)


def _has_weights(directory: Path) -> bool:
    """Whether all files of weights are there. Each appears when it is whole."""
    index = directory / INDEX_FILE
    if not index.exists():  # one file of any name but a shard's, whose index is still missing
        here = [path.name for path in directory.glob("*.safetensors") if path.exists()]
        return SINGLE_FILE in here or (len(here) == 1 and not _SHARD.search(here[0]))
    try:
        content = read_small(index, MAX_HEADER_BYTES, CheckpointError)
        names = set(json.loads(content)["weight_map"].values())
    except (CheckpointError, ValueError, KeyError, AttributeError):
        return True  # loading tells what is wrong with it
    return all((directory / str(name)).exists() for name in names)


def _check_room(download: Download) -> None:
    download.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(download.folder).free
    if free < download.nbytes:
        raise ResourceError(
            f"{download.model} needs {shown_bytes(download.nbytes)} in {download.folder}, {shown_bytes(free)} are "
            "free; make room, or set HF_HOME to another disk"
        )


def _bar_of(advance: Advance, done: int, total: int, file: str) -> type[Any]:
    """A bar to which huggingface_hub reports the bytes of one file."""
    from tqdm.std import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # it has no types
        monitor_interval = 0  # no thread that watches whether it moves

        def __init__(self, *_args: Any, initial: int = 0, **_options: Any) -> None:
            super().__init__(disable=True)
            self._reached = done
            self.update(initial)

        def update(self, n: float | None = 1) -> None:
            self._reached += int(n or 0)
            advance(min(self._reached, total), total, file)

    return Bar


def taken_for_a_name(model: HubModel) -> str:
    """The beginning of an error that may be about a mistyped path of a folder."""
    return f"there is no folder {str(model)!r} here, so it was taken for a name on the Hugging Face hub"


@contextmanager
def _network_errors(model: HubModel, failure: str, advice: str) -> Iterator[None]:
    """Make one line of any failure of hub or network; `failure` and `advice` where nothing better is known."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise NetworkError(f"{model} is gated: accept its terms on {constants.ENDPOINT}, then set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise NetworkError(
            f"{taken_for_a_name(model)}; {constants.ENDPOINT} has no such model, or a private one (set HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NetworkError(f"{model.repository} has no revision {model.revision!r}") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of httpx, whichever it uses
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise ResourceError(f"the disk is full ({error}); make room, or set HF_HOME to another disk") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise NetworkError(f"{failure} ({reason}); {advice}") from error
