"""Windows: every token is predicted once, after the context that the rules promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deepzig
from deepzig.engine.llm import LLM
from deepzig.errors import RequestError
from deepzig.evaluate.windows import encode_documents, iter_windows, split_documents, window_size

BOS = 9000


@pytest.fixture(scope="module")
def stories() -> LLM:
    return deepzig.load("stories")


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\nb", ["a\nb"]),
        ("a\n<|endoftext|>\nb\n\nc\n<|endoftext|>\n", ["a", "b\n\nc"]),
        ("<|endoftext|>\n\n  <|endoftext|>  \r\n x \n", ["x"]),
        ("a <|endoftext|> b", ["a <|endoftext|> b"]),
        ("", []),
    ],
)
def test_documents(text: str, documents: list[str]) -> None:
    assert split_documents(text) == documents


@given(st.integers(0, 60), st.integers(2, 20), st.integers(1, 20), st.booleans())
def test_each_token_is_predicted_once_in_order(length: int, window: int, stride: int, has_bos: bool) -> None:
    stride, prefix = min(stride, window), [BOS] if has_bos else []
    windows = list(iter_windows(prefix, range(length), window, stride))
    predicted = [token for w in windows for token in w.token_ids[w.first_predicted :].tolist()]
    assert predicted == list(range(0 if has_bos else 1, length))
    for w in windows:
        assert len(w.token_ids) <= window and 1 <= w.first_predicted < len(w.token_ids)
        inside = w.token_ids[len(prefix) :]
        assert w.token_ids[: len(prefix)].tolist() == prefix
        assert (np.diff(inside) == 1).all()  # context and predicted tokens follow each other
    for w in windows[1:]:
        assert w.n_predicted <= stride


def test_further_windows_are_full_of_context() -> None:
    windows = list(iter_windows([BOS], range(30), 10, 4))
    assert [w.token_ids.tolist() for w in windows[:2]] == [[BOS, *range(9)], [BOS, *range(4, 13)]]
    assert [w.n_predicted for w in windows] == [9, 4, 4, 4, 4, 4, 1]
    assert len(windows[-1].token_ids) == 10


def test_bos_comes_from_the_tokenizer(stories: LLM) -> None:
    prefix, encoded = encode_documents(stories, ["Once upon a time", "<|endoftext|>"])
    assert prefix == [0]
    assert all(0 not in token_ids and 1 not in token_ids for token_ids in encoded)


def test_defaults_follow_the_context(stories: LLM) -> None:
    assert window_size(stories, None, None) == (1024, 1024)
    assert window_size(stories, 100, 10) == (100, 10)


@pytest.mark.parametrize(("window", "stride"), [(1, None), (1025, None), (100, 0), (100, 101)])
def test_sizes_that_cannot_be(stories: LLM, window: int, stride: int | None) -> None:
    with pytest.raises(RequestError, match="is not between"):
        window_size(stories, window, stride)


def test_a_text_without_tokens_is_an_error(stories: LLM) -> None:
    with pytest.raises(RequestError, match="no tokens"):
        encode_documents(stories, [])


def test_a_window_that_the_tokens_before_a_text_fill_is_an_error() -> None:
    with pytest.raises(RequestError, match="is filled"):
        list(iter_windows([1, 2], [3, 4, 5], 2, 2))
