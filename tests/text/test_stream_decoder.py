"""The pieces of a streamed text make up the whole decode, and none ends in half a character."""

# ruff: noqa: RUF001

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from deepzig.errors import RequestError
from deepzig.text.stream_decoder import StreamDecoder
from deepzig.text.tokenizer import Tokenizer

shared = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["Hello", "👩‍💻🇨🇳 é", "你好，世界", " leading", "\ufffd really", "a\x00b", "<｜User｜>x", "😀" * 20]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_real_text(any_tokenizer: Tokenizer, text: str) -> None:
    pieces = streamed(any_tokenizer, any_tokenizer.encode(text, add_bos=False, allow_special=False))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert pieces[-1] == ""


@shared
@given(st.data())
def test_random_ids(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Random ids are mostly broken UTF-8; the pieces must still add up, U+FFFD for U+FFFD."""
    special = sorted(any_tokenizer.special_tokens.values())
    one = st.one_of(st.integers(0, any_tokenizer.vocab_size - 1), st.integers(0, 300), st.sampled_from(special))
    ids = data.draw(st.lists(one, max_size=30))
    assert "".join(streamed(any_tokenizer, ids)) == any_tokenizer.decode(ids)


@shared
@given(st.binary(max_size=40))
def test_byte_garbage(kimi_tokenizer: Tokenizer, content: bytes) -> None:
    ids = list(content)  # the first 256 ranks are the bytes
    pieces = streamed(kimi_tokenizer, ids)
    assert "".join(pieces) == kimi_tokenizer.decode(ids) == content.decode("utf-8", errors="replace")


@shared
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_half_character(kimi_tokenizer: Tokenizer, text: str) -> None:
    """Byte by byte: each character comes out whole, at its last byte and no later."""
    pieces = streamed(kimi_tokenizer, list(text.encode()))
    expected = [piece for char in text for piece in [""] * (len(char.encode()) - 1) + [char]]
    assert pieces == [*expected, ""]


def test_incomplete_character_at_the_end(kimi_tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(kimi_tokenizer)
    assert [decoder.push(0xE4), decoder.push(0xBD)] == ["", ""]
    assert decoder.finish() == "\ufffd"


def test_leading_space_of_sentencepiece(sentencepiece_tokenizer: Tokenizer) -> None:
    the = sentencepiece_tokenizer.token_to_id("▁the")
    assert the is not None
    assert streamed(sentencepiece_tokenizer, [the, the]) == ["the", " the", ""]
    assert streamed(sentencepiece_tokenizer, [1, the, 1, the]) == ["", "the", "", " the", ""]


@shared
@given(st.data())
def test_a_continued_text_keeps_its_spaces(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Wherever a text is cut, what stands before the cut and what is streamed after it make up the text."""
    ids = any_tokenizer.encode("The cat sat on the mat, and the sun is 你好.")
    cut = data.draw(st.integers(1, len(ids)))
    assume("\ufffd" not in any_tokenizer.decode(ids[:cut]))
    decoder = StreamDecoder(any_tokenizer, before=ids[cut - 1])
    streamed = decoder.push(*ids[cut:]) + decoder.finish()
    assert any_tokenizer.decode(ids[:cut]) + streamed == any_tokenizer.decode(ids)


def test_a_text_after_a_mark_begins_anew(sentencepiece_tokenizer: Tokenizer) -> None:
    for mark in ("<|im_start|>", "<tool>"):
        token, *content = sentencepiece_tokenizer.encode(f"{mark}the cat", add_bos=False)
        assert StreamDecoder(sentencepiece_tokenizer, before=token).push(*content) == "the cat"


def test_special_tokens(stories_tokenizer: Tokenizer) -> None:
    assert streamed(stories_tokenizer, [0, 3, 1]) == ["", "", "", ""]


def test_unknown_id(stories_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="4096"):
        StreamDecoder(stories_tokenizer).push(4096)
