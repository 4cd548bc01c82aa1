"""Conversations as files: a JSON object with `messages` in OpenAI's form, as a request to `deepzig serve` has them.

Called by `chat` and `chat_commands`; calls `checkpoint.safe_files` and `text`. Knows nothing of sessions.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepzig.checkpoint.safe_files import replace_file
from deepzig.errors import RequestError
from deepzig.text.tokenizer_config import is_unicode

MAX_FILE_BYTES = 8 << 20  # as much as a chat template is given
FIELDS = ("role", "content", "reasoning_content")

Message = dict[str, str]


def save_messages(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Write a conversation, all or nothing; it may replace another one.

    Raises:
        RequestError: there is a file that is no conversation.
        CheckpointError, ResourceError: it cannot be written.
    """
    if os.path.exists(path):
        try:
            load_messages(path)
        except RequestError as error:
            raise RequestError(f"{path} is there and is no conversation; choose another name") from error
    content = json.dumps({"model": model, "messages": messages}, ensure_ascii=False, indent=2)
    replace_file(path, content.encode() + b"\n")


def load_messages(path: Path) -> list[Message]:
    """The messages of a file: perhaps a system message, then users and assistants in turn.

    Raises RequestError for a file that cannot be read, or is no such conversation.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path} ({error.strerror})") from error
    if len(raw) > MAX_FILE_BYTES:
        raise RequestError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB, which no conversation is")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON ({error})") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise RequestError(f'{path} has no list "messages"')
    checked = [_checked(message, f"message {number} of {path}") for number, message in enumerate(messages, 1)]
    roles = [message["role"] for message in checked]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    for number, (role, expected) in enumerate(zip(spoken, ["user", "assistant"] * len(spoken), strict=False)):
        if role != expected:
            place = number + 1 + len(roles) - len(spoken)
            raise RequestError(f"message {place} of {path} is of the role {role!r}, not {expected!r}")
    return checked


def _checked(message: Any, place: str) -> Message:
    """The fields of a message that a chat knows."""
    if not isinstance(message, dict):
        raise RequestError(f"{place} is no object")
    found = {name: message[name] for name in FIELDS if message.get(name) is not None}
    if missing := {"role", "content"} - found.keys():
        raise RequestError(f"{place} has no {min(missing)}")
    for name, text in found.items():
        if not isinstance(text, str):
            raise RequestError(f"{name} of {place} is no text")
        if not is_unicode(text):
            raise RequestError(f"{name} of {place} has a lone surrogate, which is no character")
    return found
