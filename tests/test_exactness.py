"""The same bits whatever the threads and the batch; with deterministic=True whatever the chunks too."""

from pathlib import Path

import numpy as np
import pytest

import deepzig
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.model import workspace
from deepzig.model.cache import PAGE_SIZE, Rows

FOLDER = Path(__file__).parent / "golden" / "v3_classic"


def ids_of_golden() -> list[int]:
    return np.load(FOLDER / "expected.npz")["ids"].tolist()


@pytest.mark.parametrize("model", ["stories", FOLDER], ids=["stories", "v3_classic"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("times", [1, 3], ids=["a short prompt", "a long one"])
def test_threads_do_not_change_a_bit(model: str | Path, precision: str, times: int) -> None:
    ids = ids_of_golden() * times
    one = deepzig.load(model, n_threads=1, precision=precision).logits(ids)
    for n_threads in (2, 3):
        assert np.array_equal(one, deepzig.load(model, n_threads=n_threads, precision=precision).logits(ids))


@pytest.mark.parametrize("model", ["stories", FOLDER], ids=["stories", "v3_classic"])
@pytest.mark.parametrize("chunk_size", [1, 7, 16])
def test_deterministic_chunks_do_not_change_a_bit(model: str | Path, chunk_size: int) -> None:
    llm = deepzig.load(model, deterministic=True)
    ids = ids_of_golden() * 3
    assert np.array_equal(llm.logits(ids), llm.logits(ids, chunk_size=chunk_size))


def test_decoding_several_sequences_at_once_does_not_change_a_bit() -> None:
    model = deepzig.load("stories").model
    rng = np.random.default_rng(0)
    lengths = [3, 70, 300]  # below a page, above one, above a chunk of mla_decode
    texts = [rng.integers(5, 4000, n + 1).astype(np.int32) for n in lengths]
    cache = model.make_cache(1024)
    tables = np.array([[0, 0, 0, 0, 0], [1, 2, 0, 0, 0], [9, 8, 7, 6, 5]], np.int32)

    def rows(which: list[int], positions: list[int], is_prompt: bool) -> Rows:
        return Rows(np.array(positions, np.int32), np.arange(len(which), dtype=np.int32) if not is_prompt
                    else np.zeros(len(positions), np.int32), tables[which], is_prompt)  # fmt: skip

    for i, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        model.forward(text[:n], rows([i], list(range(n)), True), cache)
    last = np.array([text[-1] for text in texts], np.int32)
    together = model.forward(last, rows([0, 1, 2], lengths, False), cache)
    for i, n in enumerate(lengths):
        alone = model.forward(last[i : i + 1], rows([i], [n], False), cache)
        assert np.array_equal(together[i], alone[0])


def test_verified_rows_of_one_sequence_equal_single_steps() -> None:
    """Speculation hands several tokens of a sequence to one decode step."""
    model = deepzig.load("stories").model
    tokens = np.random.default_rng(1).integers(5, 4000, 90).astype(np.int32)
    table = np.arange(2, dtype=np.int32)[None]

    def step(first: int, count: int, is_prompt: bool, cache: object) -> np.ndarray:
        positions = np.arange(first, first + count, dtype=np.int32)
        return model.forward(tokens[positions], Rows(positions, np.zeros(count, np.int32), table, is_prompt), cache)

    single, several = model.make_cache(128), model.make_cache(128)
    step(0, 60, True, single)
    step(0, 60, True, several)
    one_by_one = np.concatenate([step(60 + i, 1, False, single) for i in range(12)])
    assert np.array_equal(step(60, 12, False, several), one_by_one)


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_prompts_read_in_one_call_have_the_bits_of_each_alone(form: str) -> None:
    model = deepzig.load("stories", deterministic=True).model  # products that keep a row's bits in company
    sizes = (7, 90, 1)
    texts = [np.random.default_rng(size).integers(5, 4000, size).astype(np.int32) for size in sizes]
    cache = model.make_cache(4 * PAGE_SIZE)
    together = Rows(
        positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        row_sequence=np.repeat(np.arange(3, dtype=np.int32), sizes),
        block_tables=np.array([[0, 0], [1, 2], [3, 0]], np.int32),
        is_prompt=True,
    )
    hidden = model.forward(np.concatenate(texts), together, cache, form=form)
    alone = [next(forward_chunks(model, text, model.make_cache(len(text)), form=form)) for text in texts]
    assert np.array_equal(hidden, np.concatenate(alone))


def test_rows_that_share_scratch_in_turns_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).integers(5, 4000, 300).tolist()
    whole = deepzig.load("stories", deterministic=True).logits(ids)
    monkeypatch.setattr(workspace, "MLA_SCRATCH", 20_000)  # a few rows at a time
    llm = deepzig.load("stories", deterministic=True)
    assert workspace.AttentionScratch(llm.config).for_decoding(300, 300)[0] < 100
    assert np.array_equal(llm.logits(ids), whole)


def test_keys_and_values_of_all_tiles_take_the_same_memory() -> None:
    model = deepzig.load("stories").model
    scratch = workspace.AttentionScratch(model.config)
    largest = scratch.keys_and_values(512)
    assert largest.shape == (512, model.layers[0].self_attn.kv_b_proj.out_features)
    assert np.shares_memory(scratch.keys_and_values(100), largest)
