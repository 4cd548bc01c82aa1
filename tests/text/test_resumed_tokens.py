"""Tokens of a conversation are kept when its text is tokenised again."""

import pytest

from deepzig.text.resumed_tokens import resumed
from deepzig.text.tokenizer import Tokenizer

TEXT = "Once upon a time there was a little girl who loved the sun."


def in_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """Another tokenisation of a text: a token for each character."""
    return [token for character in text for token in tokenizer.encode(character, add_bos=False)]


def test_a_longer_text_goes_on_from_the_tokens_that_are_known(stories_tokenizer: Tokenizer) -> None:
    bos = stories_tokenizer.bos_token_id
    assert bos is not None
    known = [bos, *in_bytes(stories_tokenizer, TEXT)]
    ids = stories_tokenizer.encode(TEXT + " The end")
    assert ids[: len(known)] != known
    found = resumed(ids, known, stories_tokenizer)
    assert found[: len(known)] == known
    assert stories_tokenizer.decode(found) == TEXT + " The end"
    assert found[len(known) :] == stories_tokenizer.encode(" The end", add_bos=False)


def test_the_common_beginning_ends_where_tokens_of_both_do(stories_tokenizer: Tokenizer) -> None:
    known = in_bytes(stories_tokenizer, "Once upon a ti")
    ids = stories_tokenizer.encode("Once upon a time", add_bos=False)
    found = resumed(ids, known, stories_tokenizer)
    assert found == [*in_bytes(stories_tokenizer, "Once upon a"), *ids[-1:]]


def test_a_text_without_a_common_beginning_stays(stories_tokenizer: Tokenizer) -> None:
    ids = stories_tokenizer.encode("The cat", add_bos=False)
    assert resumed(ids, [], stories_tokenizer) == ids
    assert resumed(ids, in_bytes(stories_tokenizer, "A dog"), stories_tokenizer) == ids
    assert resumed([], ids, stories_tokenizer) == []


def test_a_control_token_is_not_its_spelling(stories_tokenizer: Tokenizer) -> None:
    mark = "<think>"
    control = stories_tokenizer.control_tokens.ids[mark]
    plain = stories_tokenizer.encode(mark, add_bos=False, allow_special=False)
    assert control not in plain
    assert resumed(plain, [control], stories_tokenizer) == plain
    assert resumed([control], plain, stories_tokenizer) == [control]
    assert resumed([control, *plain], [control], stories_tokenizer) == [control, *plain]


def test_a_token_without_text_is_only_itself(stories_tokenizer: Tokenizer) -> None:
    beyond = stories_tokenizer.vocab_size + 3
    (letter,) = stories_tokenizer.encode("a", add_bos=False)
    assert resumed([letter, letter], [letter, beyond, letter], stories_tokenizer) == [letter, letter]


@pytest.mark.parametrize("text", ["你好，世界。 yes", "straße 😀 naïve"])  # noqa: RUF001
def test_characters_in_several_tokens(stories_tokenizer: Tokenizer, text: str) -> None:
    ids = stories_tokenizer.encode(text)
    assert resumed(ids, ids[:-1], stories_tokenizer) == ids
