"""Memory that a model needs: the sums, what is refused, what is warned of. How much there is, the tests decide."""

import re
import warnings
from pathlib import Path

import pytest

import deepzig
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.sizes import ModelSize, stored_size
from deepzig.config import ModelConfig
from deepzig.engine import memory_need
from deepzig.engine.memory_need import StreamingWarning, bytes_read_per_token, cache_bytes_per_token, work_bytes
from deepzig.engine.scheduler import PREFILL_CHUNK
from deepzig.errors import ResourceError
from deepzig.model.cache import PAGE_SIZE, LatentCache
from deepzig.model.workspace import AttentionScratch, Workspace

PUBLISHED = Path(__file__).resolve().parent.parent / "published"
STORIES = ModelConfig.from_directory(BUNDLED["stories"])
ROOMY = 1 << 40


def give(monkeypatch: pytest.MonkeyPatch, available: int, allocatable: int | None = None) -> None:
    """A machine with so much memory."""
    monkeypatch.setattr(memory_need, "available_memory", lambda: available)
    monkeypatch.setattr(memory_need, "allocatable_memory", lambda: available if allocatable is None else allocatable)


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return stored_size(STORIES, load_weights(open_checkpoint(BUNDLED["stories"]), STORIES))


def test_cache_is_what_the_engine_allocates(size: ModelSize) -> None:
    need = memory_need.memory_need(STORIES, size, 1000)
    n_layers = STORIES.num_hidden_layers + STORIES.num_nextn_predict_layers
    assert need.cache == LatentCache(n_layers, -(-1000 // PAGE_SIZE), STORIES.latent_dim).pages.nbytes
    assert need.nbytes == size.nbytes + need.cache + work_bytes(STORIES)
    fewer = memory_need.memory_need(STORIES, size, 1000, with_mtp=False)
    assert fewer.cache * n_layers == need.cache * STORIES.num_hidden_layers


def test_cache_of_v3_in_both_dtypes() -> None:
    """576 values in each of 61 layers and the MTP layer; int8 rows have a scale."""
    v3 = ModelConfig.from_directory(PUBLISHED / "DeepSeek-V3")
    assert cache_bytes_per_token(v3) == 62 * 576 * 4
    assert cache_bytes_per_token(v3, "int8") == 62 * (576 + 4)


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V2-Lite"])
def test_work_holds_the_workspaces_of_a_prompt_and_of_decoding(name: str) -> None:
    config = ModelConfig.from_directory(PUBLISHED / name)
    scratch = AttentionScratch(config)
    both = Workspace(config, PREFILL_CHUNK, scratch).nbytes + Workspace(config, 64, scratch).nbytes
    packed = PREFILL_CHUNK * config.num_experts_per_tok * (config.hidden_size + config.moe_intermediate_size)
    assert both + 8 * packed < work_bytes(config) < 2 * both + 8 * packed


def test_a_token_reads_weights_and_the_rows_before_it(size: ModelSize) -> None:
    rows = 100 * STORIES.num_hidden_layers * STORIES.latent_dim * 4
    assert bytes_read_per_token(STORIES, size, 100) == size.bytes_per_token + rows


def test_a_cache_beyond_memory_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1_200_000_000)
    with pytest.raises(ResourceError) as caught:
        deepzig.load("stories", cache_bytes=2_000_000_000)
    found = re.fullmatch(
        r"the model needs 2\.1 GB beside its weights: cache 2\.0 GB \+ work 54\.2 MB; 1\.2 GB are free for it; "
        r"take a smaller cache, --cache-bytes (\d+)M",
        str(caught.value),
    )
    assert found is not None, str(caught.value)
    assert deepzig.load("stories", cache_bytes=int(found[1]) * 10**6).stats().n_pages > 0


def test_without_room_for_work_nothing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, ROOMY, 10_000_000)
    with pytest.raises(ResourceError, match=r"work 54\.2 MB; 10\.0 MB are free for it; stop others"):
        deepzig.load("stories")


@pytest.mark.parametrize(
    ("allocatable", "share"),
    [(ROOMY, 1 << 20), (work_bytes(STORIES) + (1 << 19), 1 << 19)],
)
def test_the_cache_takes_a_quarter_and_leaves_room_for_work(
    monkeypatch: pytest.MonkeyPatch, size: ModelSize, allocatable: int, share: int
) -> None:
    give(monkeypatch, 4 << 20, allocatable)
    page = PAGE_SIZE * cache_bytes_per_token(STORIES)
    with pytest.warns(StreamingWarning):
        whole = memory_need.whole_model(STORIES, size, "f32", with_mtp=True)
        n_tokens = memory_need.cache_tokens(STORIES, [whole], None, size.bytes_per_token)
    assert n_tokens == share // page * PAGE_SIZE > 0


def test_weights_beyond_memory_are_a_warning_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 60_000_000)
    with pytest.warns(StreamingWarning) as caught:
        llm = deepzig.load("stories")
    assert str(caught[0].message) == (
        "weights of 13.9 MB + work 54.2 MB exceed the 60.0 MB of memory that are free: weights stream from disk, up to "
        "4.9 MB for each token; deepzig info shows what other formats need"
    )
    assert caught[0].filename == __file__
    assert len(llm.generate("Once upon", deepzig.SamplingParams(max_tokens=3)).token_ids) == 3


def test_what_fits_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 70_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deepzig.load("stories")


def test_arrays_of_a_workspace_begin_with_a_cache_line() -> None:
    space = Workspace(STORIES, 3, AttentionScratch(STORIES))
    arrays = (space.normed, space.q, space.o, space.gate, space.expert_scratch)
    assert [array.ctypes.data % 64 for array in arrays] == [0] * 5
