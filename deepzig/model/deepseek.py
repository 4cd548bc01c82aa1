"""DeepseekModel: the network, assembled from the checkpoint's weights (HF DeepseekV3ForCausalLM).

Called by `engine` with new tokens and where they belong, and by `distributed` with rows that layers on another machine
have been through; calls `decoder` and `mtp`. Knows nothing of text, sampling or requests. Weights are immutable;
everything that changes lies in the latent cache and in the workspaces.
"""

from collections.abc import Callable, Sequence

import numpy as np

from deepzig import _kernels
from deepzig.checkpoint.loader import ModelWeights
from deepzig.config import ModelConfig
from deepzig.model.assemble import Assembler
from deepzig.model.attention import cheaper_form
from deepzig.model.cache import PAGE_SIZE, LatentCache, Rows
from deepzig.model.rotary import RotaryEmbedding
from deepzig.model.workspace import AttentionScratch, Step, Workspace

KEPT_ROWS = 1280  # of all workspaces that are kept: a large prompt's, or those between which decoding alternates

HiddenStates = Callable[[], np.ndarray]  # f32 (T, D)
Observer = Callable[[int, np.ndarray, Workspace], None]  # (layer or -1 for the embedding, hidden (T, D), workspace)


class DeepseekModel:
    """The network of a DeepSeek-V2 or V3 checkpoint, or what one machine has of it: a range of the decoder layers.

    Attributes are named as in the checkpoint, without `model.`: `layers[3].self_attn.q_a_proj`, if all layers are here.
    These differ: `mlp.experts` has a list for each matrix; a router's correction bias is `mlp`'s, not `mlp.gate`'s.
    MTP layers are in `mtp_layers`, each with its decoder layer as `layer`, with `shared_head_norm` and `shared_head`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        *,
        n_threads: int,
        precision: str = "exact",
        deterministic: bool = False,
        cache_dtype: str = "f32",
        layers: range | None = None,
    ) -> None:
        """precision: "fast" rounds activations of prompts where the CPU gains by it. deterministic:
        absorbed attention and float products throughout, so that chunks and cache hits do not change a bit.
        cache_dtype: of the rows of `make_cache`, one of cache.CACHE_DTYPES. layers: the decoder layers; None: all."""
        self.config = config
        self.n_threads = n_threads
        self.precision = precision
        self.deterministic = deterministic
        self.cache_dtype = cache_dtype
        assembler = Assembler(config, weights, n_threads)
        self.embed_tokens = weights.linear["model.embed_tokens"]
        self._layer_range = range(config.num_hidden_layers) if layers is None else layers
        self.layers = [assembler.decoder_layer(i, row) for row, i in enumerate(self._layer_range)]
        self.norm = assembler.norm("model.norm", config.rms_norm_eps)
        self.lm_head = assembler.linear("lm_head")
        n_mtp = config.num_nextn_predict_layers if weights.has_mtp else 0
        self.mtp_layers = [
            assembler.mtp_layer(config.num_hidden_layers + i, len(self.layers) + i) for i in range(n_mtp)
        ]
        self._rotary = RotaryEmbedding(config)
        of_prompts = _kernels.FAST if precision == "fast" else _kernels.EXACT
        self._prompt_arithmetic = _kernels.DECODING if deterministic else of_prompts
        self._long_chunk = _kernels.LONG_CHUNK[precision]
        # BLAS, where it multiplies prompts, gives a row other bits in another batch.
        self.batches_prefills = self._prompt_arithmetic == _kernels.DECODING or not _kernels.FOR_PROMPTS
        self._workspaces: dict[int, Workspace] = {}  # by n_rows
        self._attention_scratch = AttentionScratch(config)

    @property
    def n_ahead(self) -> int:
        """Calls of `forward_ahead` whose rows are better asked for later: here all is computed when they return."""
        return 0

    @property
    def has_all_layers(self) -> bool:
        """Whether all decoder layers are here, so that an observer sees them."""
        return len(self.layers) == self.config.num_hidden_layers

    @property
    def numerics(self) -> dict[str, str]:
        """What the last bits of results depend on beside weights and tokens, by name."""
        kernels = {**_kernels.ACTIVE, **{f"{stem} for prompts": label for stem, label in _kernels.FOR_PROMPTS.items()}}
        return {
            "precision": self.precision,
            "deterministic": str(self.deterministic),
            "cache_dtype": self.cache_dtype,
            "kernels": ", ".join(f"{stem} {label}" for stem, label in sorted(kernels.items())),
        }

    def make_cache(self, n_tokens: int) -> LatentCache:
        """A latent cache for n_tokens over all layers that are here, MTP included."""
        n_layers = len(self.layers) + len(self.mtp_layers)
        return LatentCache(n_layers, -(-n_tokens // PAGE_SIZE), self.config.latent_dim, self.cache_dtype)

    def forward(
        self,
        token_ids: np.ndarray,
        rows: Rows,
        cache: LatentCache,
        *,
        form: str | None = None,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Run the layers over new tokens.

        Args:
            token_ids: i32 (T,).
            rows: where the tokens belong; their latents are written to the cache.
            form: attention form to force, "absorbed" or "expanded" (prompts only); None picks the cheaper for a prompt
                of one sequence.
            observer: called with the embedding and after each layer.

        Returns:
            f32 (T, D) after the final norm: a new array, input of `logits` and of `mtp_forward`.
        """
        step = self._step(rows, cache, self._form(form, rows), self._arithmetic(rows))
        hidden = self._embed(token_ids, step.space.hidden)
        self._through_layers(hidden, step, observer)
        return self.norm(hidden, np.empty_like(hidden))

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
        """The same for rows in the middle of prompts, whose hidden states nobody needs at once.

        Args:
            is_wanted: somebody will ask for them; False: only the cache is to be filled.

        Returns:
            What gives them, as `forward` does, and may wait for them (`distributed`).
        """
        hidden = self.forward(token_ids, rows, cache, form=form, observer=observer)
        return lambda: hidden

    def run_layers(self, hidden: np.ndarray, rows: Rows, cache: LatentCache, form: str, arithmetic: int) -> np.ndarray:
        """The layers alone, over rows that those below them, on another machine, have been through.

        Args:
            hidden: f32 (T, D), the residual stream.
            rows: as in `forward`.
            form, arithmetic: how the layers below computed, so that all do (`Step.form`, `Step.arithmetic`).

        Returns:
            f32 (T, D), the residual stream behind the last layer: a view of a workspace, good until the next step.
        """
        step = self._step(rows, cache, form, arithmetic)
        np.copyto(step.space.hidden, hidden)
        self._through_layers(step.space.hidden, step)
        return step.space.hidden

    def _through_layers(self, hidden: np.ndarray, step: Step, observer: Observer | None = None) -> None:
        """hidden f32 (T, D), the residual stream, in place."""
        if observer is not None:
            observer(-1, hidden, step.space)
        for index, layer in zip(self._layer_range, self.layers, strict=True):
            layer(hidden, step)
            if observer is not None:
                observer(index, hidden, step.space)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden f32 (T, D) after the final norm -> f32 (T, vocab_size)."""
        return self.lm_head(hidden, np.empty((len(hidden), self.config.vocab_size), np.float32))

    def mtp_forward(
        self,
        depth: int,
        token_ids: np.ndarray,
        hidden: np.ndarray,
        rows: Rows,
        cache: LatentCache,
        *,
        form: str | None = None,
    ) -> np.ndarray:
        """Run MTP layer `depth`: hidden f32 (T, D) of rows.positions, token_ids i32 (T,) of the positions after them.

        form as in `forward`.

        Returns:
            f32 (T, D) after the layer's own norm: input of `mtp_logits`, and of the next row when drafts are chained.
        """
        embedded = self._embed(token_ids, np.empty_like(hidden))
        step = self._step(rows, cache, self._form(form, rows), self._arithmetic(rows))
        return self.mtp_layers[depth](embedded, hidden, step)

    def mtp_logits(self, depth: int, state: np.ndarray) -> np.ndarray:
        """state f32 (T, D) of `mtp_forward` -> f32 (T, vocab_size), of the tokens after its token_ids."""
        head = self.mtp_layers[depth].shared_head
        return head(state, np.empty((len(state), self.config.vocab_size), np.float32))

    def close(self) -> None:
        """Let go of what is outside this process: of a network on several machines, its workers."""

    def shift_pages(self, cache: LatentCache, pages: Sequence[int], old_first: int, new_first: int) -> None:
        """Make pages of positions old_first, ... of a sequence hold new_first, ...: k_pe is rotated, c_kv stays."""
        for index, page in enumerate(pages):
            place = np.arange(index * PAGE_SIZE, (index + 1) * PAGE_SIZE, dtype=np.int32)
            cos, sin = self._rotary.rotation(old_first + place, new_first + place)
            cache.rotate_page(page, cos, sin, self.config.rope_interleave)

    def _embed(self, token_ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Rows of the embedding, decoded: f32 (T, D) in out."""
        _kernels.dequantize(self.embed_tokens, token_ids, out, n_threads=self.n_threads)
        return out

    def prompt_form(self, n_rows: int, length: int) -> str:
        """Form of attention for a prompt of n_rows new tokens that ends at `length`. Short ones are absorbed, since all
        of a call are then attended at once."""
        if self.deterministic or self.is_short(n_rows):
            return "absorbed"
        return cheaper_form(self.config, n_rows, length)

    def is_short(self, n_rows: int) -> bool:
        """Whether so many rows of a prompt take the kernels of decoding, which are faster for few. The chunks of a call
        are all short or all long, so that none depends on its batch."""
        return n_rows < self._long_chunk

    def _step(self, rows: Rows, cache: LatentCache, form: str, arithmetic: int) -> Step:
        cos, sin = self._rotary.cos_sin(rows.positions)
        return Step(rows, cos, sin, form, arithmetic, cache, self._workspace(rows.n_rows))

    def _form(self, forced: str | None, rows: Rows) -> str:
        if not rows.is_prompt:
            return "absorbed"
        return forced or self.prompt_form(rows.n_rows, int(rows.positions[-1]) + 1)

    def _arithmetic(self, rows: Rows) -> int:
        takes_prompt_kernels = rows.is_prompt and not self.is_short(rows.longest_span)
        return self._prompt_arithmetic if takes_prompt_kernels else _kernels.DECODING

    def _workspace(self, n_rows: int) -> Workspace:
        space = self._workspaces.pop(n_rows, None) or Workspace(self.config, n_rows, self._attention_scratch)
        self._workspaces[n_rows] = space  # most recently used last
        while len(self._workspaces) > 1 and sum(self._workspaces) > KEPT_ROWS:
            self._workspaces.pop(next(iter(self._workspaces)))
        return space
