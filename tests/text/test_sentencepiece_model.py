"""tokenizer.model: the `sentencepiece` library is the judge."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from deepzig.errors import TokenizerError
from deepzig.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def reference(sentencepiece_directory: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_directory / "tokenizer.model"))


def test_ids_and_text_are_those_of_the_library(
    sentencepiece_tokenizer: Tokenizer, reference: sentencepiece.SentencePieceProcessor
) -> None:
    @settings(deadline=None, max_examples=200)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text: str) -> None:
        ids = sentencepiece_tokenizer.encode(text, add_bos=False)
        assert ids == reference.encode(text)
        assert sentencepiece_tokenizer.decode(ids) == reference.decode(ids)

    check()


def test_bytes_of_tokens(sentencepiece_tokenizer: Tokenizer, reference: sentencepiece.SentencePieceProcessor) -> None:
    assert sentencepiece_tokenizer.token_bytes(reference.piece_to_id("<0xE6>")) == b"\xe6"
    assert sentencepiece_tokenizer.token_bytes(reference.piece_to_id("▁the")) == b" the"
    assert sentencepiece_tokenizer.token_to_id("▁the") == reference.piece_to_id("▁the")
    assert sentencepiece_tokenizer.token_to_id("no such piece") is None


def test_piece_that_is_no_text(sentencepiece_directory: Path, tmp_path: Path) -> None:
    content = (sentencepiece_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content.replace("▁the".encode(), b"\xff\xfethe?"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model cannot be used"):
        load_tokenizer(tmp_path)


def test_special_tokens(sentencepiece_tokenizer: Tokenizer, reference: sentencepiece.SentencePieceProcessor) -> None:
    size = reference.vocab_size()
    assert sentencepiece_tokenizer.vocab_size == size + 2
    assert (sentencepiece_tokenizer.bos_token_id, sentencepiece_tokenizer.eos_token_id) == (1, 2)
    assert sentencepiece_tokenizer.encode("<|im_start|>the<tool></s>", add_bos=False) == [
        size,
        *reference.encode("the"),
        size + 1,
        2,
    ]
    assert sentencepiece_tokenizer.encode("the") == [1, *reference.encode("the")]
    assert sentencepiece_tokenizer.is_special(size) and not sentencepiece_tokenizer.is_special(size + 1)
