"""Conversations as files: what is written is read again, and what is no conversation is told in a line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deepzig.cli.chat_file import load_messages, save_messages
from deepzig.errors import CheckpointError, RequestError

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Why?\nTell me. \N{SNOWMAN}"},
    {"role": "assistant", "content": "Because.", "reasoning_content": "Hm."},
]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_messages(path, "stories", MESSAGES)
    assert load_messages(path) == MESSAGES
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "stories"
    save_messages(path, "stories", MESSAGES[:2])
    assert load_messages(path) == MESSAGES[:2]
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_list_of_messages_will_do(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{**MESSAGES[1], "name": "Tom"}]), encoding="utf-8")
    assert load_messages(path) == MESSAGES[1:2]


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match="is no conversation"):
        save_messages(path, "stories", MESSAGES)
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["none/talk.json", "a whole sentence " * 20])
def test_a_place_where_no_file_can_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        save_messages(tmp_path / name, "stories", MESSAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"3", 'has no list "messages"'),
        ({"messages": "hello"}, 'has no list "messages"'),
        ([3], "message 1 of .* is no object"),
        ([{"role": "user"}], "message 1 of .* has no content"),
        ([{"content": "a"}], "message 1 of .* has no role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content of message 1 of .* is no text"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
        ([MESSAGES[2]], "message 1 of .* 'assistant', not 'user'"),
        ([MESSAGES[0], MESSAGES[1], MESSAGES[1]], "message 3 of .* 'user', not 'assistant'"),
        ([MESSAGES[1], {"role": "tool", "content": "noon"}], "message 2 of .* 'tool', not 'assistant'"),
        (b" " * (8 << 20) + b"[]", "larger than 8 MiB"),
    ],
)  # fmt: skip
def test_what_is_no_conversation(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(RequestError, match=message) as caught:
        load_messages(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        load_messages(tmp_path / "none.json")
