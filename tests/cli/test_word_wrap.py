"""Lines broken between words, while the text comes in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from deepzig.cli.word_wrap import WordWrap


def wrapped(text: str, columns: int, piece: int = 1) -> str:
    wrap = WordWrap(columns)
    pieces = [text[first : first + piece] for first in range(0, len(text), piece)]
    return "".join(map(wrap.push, pieces)) + wrap.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two\nthree"),
        ("one two\nthree four five", "one two\nthree four\nfive"),
        ("0123456789 a", "0123456789\na"),
        ("0123456789abc d", "0123456789abc d"),
        ("  indented words", "  indented\nwords"),
        ("ab  cd   ", "ab  cd"),
        ("a\n\nb", "a\n\nb"),
        ("\tab cd", "\tab\ncd"),
        ("你好世界你好", "你好世界你\n好"),
        ("```py\nx = 1  # a comment that is long\n```\nwords and words", "```py\nx = 1  # a comment that is long\n```\n"
         "words and\nwords"),
    ],
)  # fmt: skip
def test_lines_of_ten_columns(text: str, shown: str) -> None:
    assert wrapped(text, 10) == shown


def test_a_word_waits_until_it_is_whole() -> None:
    wrap = WordWrap(10)
    assert [wrap.push(piece) for piece in ("Hel", "lo wo", "rld!", "\n")] == ["", "Hello", "", "\nworld!\n"]


@settings(deadline=None)
@given(text=st.text("ab \n\t你`", max_size=80), columns=st.integers(3, 20), piece=st.integers(1, 9))
def test_words_stay_and_lines_fit(text: str, columns: int, piece: int) -> None:
    shown = wrapped(text, columns, piece)
    assert shown == wrapped(text, columns, len(text) or 1)
    assert "".join(shown.split()) == "".join(text.split())
    if "```" not in text and "\t" not in text:
        assert all(fits(line, columns) for line in shown.split("\n"))


def fits(line: str, columns: int) -> bool:
    """Whether a terminal need not break a line but in its first word, which may be wider than the terminal."""
    words = line.lstrip()
    first = cell_len(line) - cell_len(words) + cell_len(words.split(" ")[0])
    return (max(first, 1) - 1) % columns + 1 + cell_len(line) - first <= columns
