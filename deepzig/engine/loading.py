"""load: a model's folder as an LLM.

Called by users, `cli` and `llm_plugin`, and by `distributed`, whose network is on several machines; calls `checkpoint`,
`text`, `memory_need`, `defaults`, the model and `engine` for the parts, and puts them together as an `llm`.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig import _kernels
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import ModelWeights, load_weights
from deepzig.checkpoint.model_hash import hash_of_model
from deepzig.checkpoint.model_names import find_model
from deepzig.checkpoint.sizes import ModelSize, stored_size
from deepzig.config import ModelConfig
from deepzig.engine.defaults import GenerationDefaults
from deepzig.engine.engine import Engine
from deepzig.engine.llm import LLM
from deepzig.engine.memory_need import cache_tokens, whole_model
from deepzig.engine.number_checks import as_integer
from deepzig.errors import RequestError
from deepzig.model.cache import CACHE_DTYPES
from deepzig.model.deepseek import DeepseekModel
from deepzig.text.chat import ChatTemplate
from deepzig.text.tokenizer import load_tokenizer
from deepzig.threads import MAX_THREADS, available_threads

log = logging.getLogger("deepzig.engine")


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model: the arguments of `load`, checked. Raises RequestError as `load` does."""

    n_threads: int | None = None
    precision: str = "exact"
    deterministic: bool = False
    strict: bool = False
    cache_dtype: str = "f32"
    cache_bytes: int | None = None
    context_shift: bool = False
    prompt_cache: str | Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("exact", "fast"):
            raise RequestError(f"precision {self.precision!r} is unknown; use exact or fast")
        if self.cache_dtype not in tuple(CACHE_DTYPES):
            raise RequestError(f"cache_dtype {self.cache_dtype!r} is unknown; use {' or '.join(CACHE_DTYPES)}")
        for name in ("n_threads", "cache_bytes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_integer(name, getattr(self, name), least=1))
        if self.n_threads is not None and self.n_threads > MAX_THREADS:
            raise RequestError(f"n_threads {self.n_threads} is above {MAX_THREADS}")
        if not isinstance(self.prompt_cache, str | os.PathLike | None):
            raise RequestError(f"prompt_cache {self.prompt_cache!r} is no path; give a folder")

    @property
    def computing(self) -> dict[str, Any]:
        """The arguments of `DeepseekModel`, on the machine that asks."""
        return {
            "n_threads": self.n_threads or available_threads(),
            "precision": self.precision,
            "deterministic": self.deterministic,
            "cache_dtype": self.cache_dtype,
        }


# The network of a folder, and how many tokens its cache holds.
MakeNetwork = Callable[[Path, ModelConfig, ModelWeights, ModelSize, LoadOptions], tuple[DeepseekModel, int]]


def load(
    model: str | Path,
    n_threads: int | None = None,
    precision: str = "exact",
    deterministic: bool = False,
    strict: bool = False,
    cache_dtype: str = "f32",
    cache_bytes: int | None = None,
    context_shift: bool = False,
    prompt_cache: str | Path | None = None,
) -> LLM:
    """Load a model for inference.

    Args:
        model: a directory with config.json and safetensors files; "stories", the bundled model; or a name on the
            Hugging Face hub, "org/name" or "org/name@revision", which is downloaded unless it is here. More than 1 GB
            only if the environment variable DEEPZIG_YES is 1; none at all if DEEPZIG_OFFLINE is 1.
        n_threads: compute threads; None takes one for each physical core that this process may use.
        precision: "exact", products accurate to about float32; or "fast", activations of prompts rounded to bfloat16
            or 16-bit whole numbers, whichever the CPU multiplies faster.
        deterministic: the same bits whatever the batch, threads, chunks and cache hits.
        strict: tensors that the model does not need are an error, not a warning.
        cache_dtype: numbers of the latent cache: "f32"; or "int8", a quarter of the memory (docs/quantising.md has its
            cost).
        cache_bytes: size of the latent cache; None takes a quarter of the memory that is free, at most what 64 whole
            contexts need.
        context_shift: a sequence that fills the context drops its oldest tokens, except those at its beginning, and
            goes on; `GenerationResult.n_dropped` counts them. Without it a longer prompt is an error, and an answer
            ends there.
        prompt_cache: a folder that keeps what was computed of prompts and answers from one run to the next. It is
            written when the model is closed: by `with deepzig.load(...) as llm`, or at the end of the program.

    Raises:
        ConfigError, CheckpointError, TokenizerError: a file of the model cannot be used; nothing is half-loaded.
        RequestError: an argument is unknown or out of range, or nobody agreed to a download of more than 1 GB.
        NetworkError: the model cannot be fetched.
        ResourceError: no room on the disk for the download, or in memory for cache and work. Weights that exceed
            memory are a StreamingWarning: they are read from disk again for each token.
    """
    options = LoadOptions(
        n_threads, precision, deterministic, strict, cache_dtype, cache_bytes, context_shift, prompt_cache
    )
    return build_llm(model, options, _network_here)


def build_llm(model: str | Path, options: LoadOptions, make_network: MakeNetwork) -> LLM:
    """Read a model's folder and put an LLM together around the network that `make_network` makes. Raises as `load`."""
    started = time.perf_counter()
    if not isinstance(model, str | os.PathLike):
        raise RequestError(f"model {model!r} is no path and no name; give a folder, stories, or org/name")
    directory = find_model(model)
    config = ModelConfig.from_directory(directory)
    defaults = GenerationDefaults.from_directory(directory, config)
    tokenizer = load_tokenizer(directory)
    chat_template = ChatTemplate.from_directory(directory)
    weights = load_weights(open_checkpoint(directory), config, strict=options.strict)
    if problem := _kernels.build_report().problem:
        warnings.warn(
            f"no compiled kernels, running on Numba (slower; compiling takes about a minute, once): {problem}",
            RuntimeWarning,
            stacklevel=3,
        )
    size = stored_size(config, weights)
    network, n_tokens = make_network(directory, config, weights, size, options)
    engine = Engine(network, n_tokens, context_shift=options.context_shift)
    if options.prompt_cache is not None:
        made_for = {"model": hash_of_model(directory), **network.numerics}
        engine.open_prompt_cache(Path(options.prompt_cache), made_for)
    _log_loaded(directory, network, n_tokens, time.perf_counter() - started)
    return LLM(str(model), directory, size, tokenizer, chat_template, defaults, engine)


def _network_here(
    directory: Path, config: ModelConfig, weights: ModelWeights, size: ModelSize, options: LoadOptions
) -> tuple[DeepseekModel, int]:
    whole = whole_model(config, size, options.cache_dtype, with_mtp=weights.has_mtp)
    n_tokens = cache_tokens(config, [whole], options.cache_bytes, size.bytes_per_token)
    return DeepseekModel(config, weights, **options.computing), n_tokens


def _log_loaded(directory: Path, network: DeepseekModel, n_tokens: int, seconds: float) -> None:
    log.info("kernels: %s", _kernels.in_a_line())
    config = network.config
    log.info("%s: %s, %d layers", directory, config.model_type, config.num_hidden_layers)
    log.info("loaded in %.2f s: threads %d, cache of %d tokens", seconds, network.n_threads, n_tokens)
