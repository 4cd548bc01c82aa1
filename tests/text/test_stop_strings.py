"""Streamed text ends exactly where the whole text would be cut."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepzig.errors import RequestError
from deepzig.text.stop_strings import StopMatcher


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The whole text up to the stop string that begins earliest, and whether there is one."""
    starts = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(starts)], True) if starts else (text, False)


def pushed(matcher: StopMatcher, text: str) -> tuple[str, bool]:
    """What may be emitted, and whether a stop string has been reached."""
    return matcher.push(text), matcher.hit


def run(chunks: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    text = ""
    for chunk in chunks:
        text += matcher.push(chunk)
        if matcher.hit:
            break
    text += matcher.flush()
    return text, matcher.hit


small_text = st.text("ab\n", max_size=4)


@given(st.lists(small_text, max_size=12), st.lists(small_text.filter(bool), max_size=4))
def test_equals_cutting_the_whole_text(chunks: list[str], stops: list[str]) -> None:
    assert run(chunks, stops) == cut("".join(chunks), stops)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=6), max_size=3))
def test_character_by_character(text: str, stops: list[str]) -> None:
    assert run(list(text), stops) == cut(text, stops)


@given(st.lists(st.text(max_size=5), max_size=8))
def test_without_stop_strings_nothing_is_held(chunks: list[str]) -> None:
    matcher = StopMatcher([])
    assert [pushed(matcher, chunk) for chunk in chunks] == [(chunk, False) for chunk in chunks]
    assert matcher.flush() == "" and not matcher.hit


def test_holds_back_only_what_may_become_a_stop_string() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert pushed(matcher, "Hi\n") == ("Hi", False)
    assert pushed(matcher, "\nUse") == ("", False)
    assert pushed(matcher, "d") == ("\n\nUsed", False)
    assert pushed(matcher, "\n\nUser: next") == ("", True)
    assert pushed(matcher, "more") == ("", True)
    assert matcher.flush() == ""


def test_flush_releases_an_unfinished_stop_string() -> None:
    matcher = StopMatcher(["END"])
    assert pushed(matcher, "the EN") == ("the ", False)
    assert matcher.flush() == "EN" and not matcher.hit


def test_waits_for_the_stop_string_that_began_earlier() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert pushed(matcher, "xabc") == ("x", False)
    assert pushed(matcher, "d") == ("", True)
    matcher = StopMatcher(["abcd", "bc"])
    assert pushed(matcher, "xabc") == ("x", False)
    assert matcher.flush() == "a" and matcher.hit


def test_empty_stop_string() -> None:
    with pytest.raises(RequestError, match="empty stop string"):
        StopMatcher(["x", ""])


def test_hostile_stop_string_takes_linear_time() -> None:
    matcher = StopMatcher(["a" * 20_000 + "b"])
    started = time.process_time()
    for _ in range(40_000):
        matcher.push("a")
    assert time.process_time() - started < 5
