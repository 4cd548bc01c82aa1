"""How much memory a model needs. If there is less, loading refuses, or warns that weights stream from disk.

Called by `loading`, `distributed`, `deepzig info`, the bench and the table of docs/big-models.md, so that all calculate
alike; calls `model` for the sizes of what it allocates.

Weights are memory-mapped files: what does not fit in memory is read again when it is needed. Cache and work are memory
of the process, and must fit.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from deepzig.checkpoint.sizes import ModelSize
from deepzig.config import ModelConfig
from deepzig.engine.scheduler import MAX_RUNNING, PREFILL_CHUNK
from deepzig.errors import RequestError, ResourceError, shown_bytes
from deepzig.memory import allocatable_memory, available_memory
from deepzig.model.attention import KEY_TILE
from deepzig.model.cache import PAGE_SIZE, LatentCache
from deepzig.model.deepseek import KEPT_ROWS
from deepzig.model.workspace import AttentionScratch, Workspace

PACKED_BYTES = 8  # at most, of a number as products take it: fp8 with AMX, `deterministic`; three digits take 3


class StreamingWarning(UserWarning):
    """The weights exceed the memory there is, and are read from disk again and again."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, by what they are for."""

    weights: int  # of files, mapped
    cache: int  # of the latent cache, when it is full
    work: int  # arrays of a step

    @property
    def own(self) -> int:
        """Bytes that the process allocates."""
        return self.cache + self.work

    @property
    def nbytes(self) -> int:
        """Bytes with all weights in memory, as full speed needs."""
        return self.weights + self.own


def memory_need(
    config: ModelConfig, size: ModelSize, n_tokens: int, cache_dtype: str = "f32", *, with_mtp: bool = True
) -> MemoryNeed:
    """The memory that a model with a cache for n_tokens needs. with_mtp: the checkpoint has the MTP layers that the
    config names."""
    n_pages = -(-n_tokens // PAGE_SIZE)
    cache = n_pages * PAGE_SIZE * cache_bytes_per_token(config, cache_dtype, with_mtp=with_mtp)
    return MemoryNeed(size.nbytes, cache, work_bytes(config))


def cache_bytes_per_token(config: ModelConfig, cache_dtype: str = "f32", *, with_mtp: bool = True) -> int:
    """Bytes of a token's rows in the latent cache: R + P values for each layer."""
    n_layers = config.num_hidden_layers + (config.num_nextn_predict_layers if with_mtp else 0)
    return LatentCache(n_layers, 0, config.latent_dim, cache_dtype).bytes_per_token


def work_bytes(config: ModelConfig) -> int:
    """Bytes of the arrays that steps use: workspaces, keys and values of a tile, logits of all rows that are decoded,
    and a chunk's rows as kernels pack them. The scratch of absorbed attention, up to 64 MB unless the context is very
    long, comes on top."""
    workspaces = KEPT_ROWS * Workspace(config, 1, AttentionScratch(config)).nbytes
    expanded = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    floats = KEY_TILE * expanded + MAX_RUNNING * config.vocab_size
    for_experts = config.num_experts_per_tok * (config.hidden_size + config.moe_intermediate_size)
    for_linear = max(config.intermediate_size, config.num_attention_heads * config.v_head_dim)
    return workspaces + 4 * floats + PACKED_BYTES * PREFILL_CHUNK * (for_experts + for_linear)


def bytes_read_per_token(config: ModelConfig, size: ModelSize, n_tokens: int, cache_dtype: str = "f32") -> int:
    """Bytes that decoding a token reads: weights, and the rows of the n_tokens before it in all layers."""
    return size.bytes_per_token + n_tokens * cache_bytes_per_token(config, cache_dtype, with_mtp=False)


@dataclass(frozen=True)
class Share:
    """The part of a model on one machine, and the memory there for it, in bytes."""

    weights: int
    cache_per_token: int
    available: int  # without others being pushed out
    allocatable: int  # by its process
    machine: str = ""  # for messages; empty: this one


def whole_model(config: ModelConfig, size: ModelSize, cache_dtype: str, *, with_mtp: bool) -> Share:
    """The share of this machine if it has all of a model."""
    per_token = cache_bytes_per_token(config, cache_dtype, with_mtp=with_mtp)
    return Share(size.nbytes, per_token, available_memory(), allocatable_memory())


def cache_tokens(config: ModelConfig, shares: Sequence[Share], cache_bytes: int | None, bytes_read: int) -> int:
    """Tokens for which the cache has room, on all machines of a model to be loaded, in whole pages.

    Args:
        shares: of all machines.
        cache_bytes: as in `loading.load`, on all machines together.
        bytes_read: weights that a token reads, for a warning.

    Raises:
        RequestError: cache_bytes are fewer than a page takes.
        ResourceError: there is not enough memory for cache and work, even with all weights on disk.
    """
    work = work_bytes(config)
    page_bytes = PAGE_SIZE * sum(share.cache_per_token for share in shares)
    if cache_bytes is None:
        rooms = [
            min(share.available // 4, share.allocatable - work) // (PAGE_SIZE * share.cache_per_token)
            for share in shares
        ]
        n_tokens = PAGE_SIZE * max(1, min(*rooms, MAX_RUNNING * config.max_position_embeddings // PAGE_SIZE))
    elif cache_bytes < page_bytes:
        raise RequestError(f"cache_bytes {cache_bytes} is below the {page_bytes} that {PAGE_SIZE} tokens take")
    else:
        n_tokens = cache_bytes // page_bytes * PAGE_SIZE
    for share in shares:
        need = MemoryNeed(share.weights, n_tokens * share.cache_per_token, work)
        _refuse_beyond(share, need)
        _warn_beyond(share, need, bytes_read)
    return n_tokens


def _refuse_beyond(share: Share, need: MemoryNeed) -> None:
    if need.own <= share.allocatable:
        return
    left = (share.allocatable - need.work) // 10**6
    advice = f"take a smaller cache, --cache-bytes {left}M" if left > 0 else "stop others, or take a smaller model"
    raise ResourceError(
        f"{_where(share)}the model needs {shown_bytes(need.own)} beside its weights: cache {shown_bytes(need.cache)} + "
        f"work {shown_bytes(need.work)}; {shown_bytes(share.allocatable)} are free for it; {advice}"
    )


def _warn_beyond(share: Share, need: MemoryNeed, bytes_read: int) -> None:
    if need.weights + need.work <= share.available:  # the cache takes memory only as it fills
        return
    warnings.warn(
        f"{_where(share)}weights of {shown_bytes(need.weights)} + work {shown_bytes(need.work)} exceed the "
        f"{shown_bytes(share.available)} of memory that are free: weights stream from disk, up to "
        f"{shown_bytes(bytes_read)} for each token; deepzig info shows what other formats need",
        StreamingWarning,
        stacklevel=6,
    )


def _where(share: Share) -> str:
    return f"{share.machine}: " if share.machine else ""
