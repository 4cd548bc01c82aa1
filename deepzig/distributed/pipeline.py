"""PipelineModel: a network whose first layers are in this process, and the others on the machines of a crew.

Made by `loading`; the engine calls it like any `DeepseekModel`; calls `crew`. Embedding, final norm, head and MTP
layers are here too. Rows go from machine to machine in float32, so every bit is as on one machine if all pick the same
kernels.
"""

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepzig.checkpoint.loader import ModelWeights
from deepzig.config import ModelConfig
from deepzig.distributed.crew import Crew
from deepzig.model.cache import PAGE_SIZE, LatentCache, Rows
from deepzig.model.deepseek import DeepseekModel, HiddenStates, Observer


class PipelineCache(LatentCache):
    """The latent cache of the layers here and on all machines."""

    def __init__(self, crew: Crew, n_layers: int, n_pages: int, latent_dim: int, dtype: str) -> None:
        """n_layers: number of layers that are here."""
        super().__init__(n_layers, n_pages, latent_dim, dtype)
        self._crew = crew
        self.key = crew.make_cache(n_pages * PAGE_SIZE)
        weakref.finalize(self, crew.drop_cache, self.key)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in all layers."""
        super().copy_page(source, target)
        self._crew.tell("copy_page", self.key, source, target)

    def rotate_page(self, page: int, cos: np.ndarray, sin: np.ndarray, interleave: bool) -> None:
        """Rotate the k_pe of a page in all layers, as `LatentCache` does."""
        super().rotate_page(page, cos, sin, interleave)
        self._crew.tell("rotate_page", self.key, page, cos, sin, interleave)

    def export_pages(self, pages: Sequence[int]) -> dict[str, np.ndarray]:
        """Export pages as `LatentCache` does; the layers here, then those on the machines."""
        parts = [super().export_pages(pages), *self._crew.ask("export_pages", self.key, pages)]
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}

    def import_page(self, page: int, arrays: Mapping[str, np.ndarray], index: int) -> None:
        """Fill a page with one from `export_pages`."""
        of_page = {name: arrays[name][index : index + 1] for name in super().export_pages([])}
        n_here, begin = len(self.pages), self._crew.layers[0].start
        super().import_page(page, {name: array[:, :n_here] for name, array in of_page.items()}, 0)
        parts = [slice(n_here + part.start - begin, n_here + part.stop - begin) for part in self._crew.layers]
        of_each = [{name: array[:, part] for name, array in of_page.items()} for part in parts]
        self._crew.tell_each("import_page", self.key, [(page, theirs) for theirs in of_each])


class PipelineModel(DeepseekModel):
    """A `DeepseekModel` on several machines."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, crew: Crew, layers: range, **computing: Any) -> None:
        """layers: those that are here; computing: as for `DeepseekModel`."""
        super().__init__(config, weights, layers=layers, **computing)
        self._crew = crew

    @property
    def numerics(self) -> dict[str, str]:
        """What `DeepseekModel.numerics` has, and which layers are where, which decides the order of a cache's layers.
        """
        of_crew = [
            f"{part.start} to {part.stop - 1}: {kernels}"
            for part, kernels in zip(self._crew.layers, self._crew.kernels, strict=True)
        ]
        return {**super().numerics, "split of the layers": "; ".join(of_crew)}

    def make_cache(self, n_tokens: int) -> PipelineCache:
        """A latent cache for n_tokens over all layers, MTP included."""
        n_here = len(self.layers) + len(self.mtp_layers)
        return PipelineCache(self._crew, n_here, -(-n_tokens // PAGE_SIZE), self.config.latent_dim, self.cache_dtype)

    def close(self) -> None:
        """Dismiss the workers."""
        self._crew.close()

    @property
    def n_ahead(self) -> int:
        """Calls that may be under way: as many as there are other machines."""
        return len(self._crew.layers)

    def forward(
        self,
        token_ids: np.ndarray,
        rows: Rows,
        cache: LatentCache,
        *,
        form: str | None = None,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """As `DeepseekModel` does. Raises as `forward_ahead`."""
        return self.forward_ahead(token_ids, rows, cache, form=form, observer=observer, is_wanted=True)()

    def forward_ahead(
        self,
        token_ids: np.ndarray,
        rows: Rows,
        cache: LatentCache,
        *,
        form: str | None = None,
        observer: Observer | None = None,
        is_wanted: bool,
    ) -> HiddenStates:
        """Run the layers that are here and send the rows on. The machines may still be at it on return.

        Raises:
            ClusterError: a machine is lost, or what it had computed.
        """
        assert isinstance(cache, PipelineCache)
        step = self._step(rows, cache, self._form(form, rows), self._arithmetic(rows))
        hidden = self._embed(token_ids, step.space.hidden)
        self._through_layers(hidden, step, observer)
        beyond = self._crew.run(cache.key, rows, step.form, step.arithmetic, hidden, is_wanted)

        @functools.cache
        def normed() -> np.ndarray:
            last = beyond()
            return self.norm(last, np.empty_like(last))

        return normed
