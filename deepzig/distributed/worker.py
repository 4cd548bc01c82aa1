"""Worker: some layers of a model on one machine, and their rows of the latent caches.

Made on that machine by `ray_cluster`, which calls its methods for `crew`, one after the other. Calls `checkpoint` and
the model. Knows nothing of requests or other machines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.model_hash import hash_of_model
from deepzig.config import ModelConfig
from deepzig.engine.loading import LoadOptions
from deepzig.errors import ClusterError
from deepzig.memory import allocatable_memory, available_memory
from deepzig.model.cache import LatentCache, Rows
from deepzig.model.deepseek import DeepseekModel
from deepzig.threads import available_threads


@dataclass(frozen=True)
class MachineFacts:
    """What the first machine must know of another before it assigns layers to it."""

    version: str  # of deepzig
    model_hash: str
    available: int  # memory, bytes
    allocatable: int
    n_threads: int  # that compute, unless the caller wants another number


class Worker:
    """The layers of one machine."""

    def __init__(self, directory: Path) -> None:
        """directory: the checkpoint's folder on this machine."""
        self._directory = directory
        self._model: DeepseekModel | None = None
        self._caches: dict[int, LatentCache] = {}

    def facts(self) -> MachineFacts:
        """Facts of this machine and its checkpoint. Raises ConfigError and CheckpointError as loading does."""
        return facts_here(self._directory)

    def load(self, layers: range, options: LoadOptions) -> str:
        """Map the weights of some layers. Returns how they are computed, as in `DeepseekModel.numerics`.

        Raises:
            ConfigError, CheckpointError: the checkpoint cannot be used here.
        """
        config = ModelConfig.from_directory(self._directory)
        weights = load_weights(open_checkpoint(self._directory), config)
        without_mtp = replace(weights, has_mtp=False)  # the first machine has the MTP layers
        self._model = DeepseekModel(config, without_mtp, layers=layers, **options.computing)
        return self._model.numerics["kernels"]

    def check(self) -> None:
        """Return at once: proves that the worker is alive."""

    def make_cache(self, key: int, n_tokens: int) -> None:
        """Make a latent cache; `key` names it from now on."""
        self._caches[key] = self._loaded.make_cache(n_tokens)

    def drop_cache(self, key: int) -> None:
        """Forget a cache, if memory sufficed to make it."""
        self._caches.pop(key, None)

    def run(
        self, key: int, rows: Rows, form: str, arithmetic: int, hidden: np.ndarray, is_wanted: bool
    ) -> np.ndarray | None:
        """`DeepseekModel.run_layers`: f32 (T, D), None unless it is wanted."""
        result = self._loaded.run_layers(hidden, rows, self._caches[key], form, arithmetic)
        return result if is_wanted else None

    def copy_page(self, key: int, source: int, target: int) -> None:
        """Copy a page, as `LatentCache` does."""
        self._caches[key].copy_page(source, target)

    def rotate_page(self, key: int, page: int, cos: np.ndarray, sin: np.ndarray, interleave: bool) -> None:
        """Rotate the k_pe of a page, as `LatentCache` does."""
        self._caches[key].rotate_page(page, cos, sin, interleave)

    def export_pages(self, key: int, pages: Sequence[int]) -> dict[str, np.ndarray]:
        """Export pages, as `LatentCache` does."""
        return self._caches[key].export_pages(pages)

    def import_page(self, key: int, page: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Fill a page with one from `export_pages`, alone in its arrays."""
        self._caches[key].import_page(page, arrays, 0)

    @property
    def _loaded(self) -> DeepseekModel:
        if self._model is None:
            raise ClusterError("a machine was asked to compute before it had its layers; restart deepzig")
        return self._model


def facts_here(directory: Path) -> MachineFacts:
    """Facts of this machine and a checkpoint on it."""
    return MachineFacts(
        version("deepzig"), hash_of_model(directory), available_memory(), allocatable_memory(), available_threads()
    )


def check_same(name: str, here: MachineFacts, there: MachineFacts) -> None:
    """Raise ClusterError unless the named machine has the same model and deepzig as this one."""
    if there.version != here.version:
        raise ClusterError(f"{name} has deepzig {there.version}, this machine {here.version}; install the same on both")
    if there.model_hash != here.model_hash:
        raise ClusterError(f"{name} has another model at that path; copy the same files to it")
