"""The two forms of attention are one function: whatever the form, the chunks and the batch, the logits are the same.

Against HF: test_golden.py. Bit for bit, with one form throughout: test_exactness.py.
"""

from pathlib import Path

import numpy as np
import pytest

from deepzig._kernels import ACTIVE
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.config import ModelConfig
from deepzig.engine.whole_sequence import forward_chunks
from deepzig.model.cache import LatentCache, Rows
from deepzig.model.deepseek import DeepseekModel

GOLDEN = Path(__file__).parent / "golden"
ATOL = 1e-4  # logits of order 1
FORMS = ("absorbed", "expanded")


def ids_of(name: str) -> np.ndarray:
    """i32 (T,)."""
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return arrays["ids"].astype(np.int32)


@pytest.fixture(scope="module", params=["v3_classic", "v3_yarn", "v2_lite"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> DeepseekModel:
    config = ModelConfig.from_directory(GOLDEN / name)
    return DeepseekModel(config, load_weights(open_checkpoint(GOLDEN / name), config), n_threads=2)


def logits(model: DeepseekModel, ids: np.ndarray, chunk_size: int, form: str | None) -> np.ndarray:
    """f32 (T, vocab_size)."""
    cache = model.make_cache(len(ids))
    chunks = forward_chunks(model, ids, cache, chunk_size=chunk_size, form=form)
    return np.concatenate([model.logits(hidden) for hidden in chunks])


def test_forms_agree(model: DeepseekModel, name: str) -> None:
    ids = ids_of(name)
    absorbed, expanded = (logits(model, ids, len(ids), form) for form in FORMS)
    np.testing.assert_allclose(absorbed, expanded, rtol=0, atol=ATOL)
    assert not np.array_equal(absorbed, expanded), "only one form has run"


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 31])
def test_chunks_agree(model: DeepseekModel, name: str, chunk_size: int, form: str | None) -> None:
    ids = ids_of(name)
    whole = logits(model, ids, len(ids), "expanded")
    np.testing.assert_allclose(logits(model, ids, chunk_size, form), whole, rtol=0, atol=ATOL)


def test_forms_agree_past_the_tiles(model: DeepseekModel, name: str) -> None:
    """A prompt longer than the tiles of keys and the chunks of context, fed in uneven chunks."""
    ids = np.resize(ids_of(name), 700)
    expanded = logits(model, ids, 300, "expanded")
    np.testing.assert_allclose(logits(model, ids, 450, "absorbed"), expanded, rtol=0, atol=ATOL)


class Sequences:
    """Prompts of several sequences in one cache, their pages scattered, and the step that decodes a token of each."""

    def __init__(self, model: DeepseekModel, ids: np.ndarray, lengths: list[int]) -> None:
        rng = np.random.default_rng(0)
        n_pages = 2 * len(lengths)
        self.model, self.lengths = model, lengths
        self.tables = rng.permutation(n_pages + 1)[:n_pages].reshape(-1, 2).astype(np.int32)  # i32 (B, 2)
        self.texts = [np.resize(np.roll(ids, shift), n + 1) for shift, n in enumerate(lengths)]
        self.cache: LatentCache = model.make_cache(64 * (n_pages + 1))
        for sequence, n in enumerate(lengths):
            rows = Rows(np.arange(n, dtype=np.int32), np.full(n, sequence, np.int32), self.tables, is_prompt=True)
            model.forward(self.texts[sequence][:n], rows, self.cache)

    def decode(self, which: list[int]) -> np.ndarray:
        """Logits f32 (len(which), vocab_size) of the last tokens of these sequences, computed in one step."""
        tokens = np.array([self.texts[sequence][-1] for sequence in which], np.int32)
        positions = np.array([self.lengths[sequence] for sequence in which], np.int32)
        rows = Rows(positions, np.array(which, np.int32), self.tables, is_prompt=False)
        return self.model.logits(self.model.forward(tokens, rows, self.cache))


@pytest.mark.skipif(ACTIVE["linear"] in ("blas", "reference"), reason="BLAS sums by the shape of the product")
def test_sequences_decoded_together_equal_each_alone(model: DeepseekModel, name: str) -> None:
    """Bit for bit, in any order and number: below a page, at its end, past it."""
    sequences = Sequences(model, ids_of(name), [1, 17, 63, 64, 65, 100, 127])
    alone = np.concatenate([sequences.decode([sequence]) for sequence in range(7)])
    for which in ([0, 1, 2, 3, 4, 5, 6], [6, 2], [5, 0, 4, 3], [3, 1, 6, 2, 0]):
        np.testing.assert_array_equal(sequences.decode(which), alone[which], err_msg=str(which))


def test_decoding_continues_the_prompt(model: DeepseekModel, name: str) -> None:
    """The last token of each sequence as a decode step gives what the whole text gives as a prompt."""
    sequences = Sequences(model, ids_of(name), [1, 40, 64, 120])
    for row, text in zip(sequences.decode([0, 1, 2, 3]), sequences.texts, strict=True):
        np.testing.assert_allclose(row, logits(model, text, len(text), "expanded")[-1], rtol=0, atol=ATOL)
