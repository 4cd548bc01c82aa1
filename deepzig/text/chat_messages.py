"""Messages as chat templates expect them: contents are texts, roles are those that the template knows.

Called by `chat` with all messages, whether they come from Python or over HTTP, and by `server` for texts in parts.
Knows of a template only what it is told.
"""

from collections.abc import Sequence
from typing import Any

from deepzig.errors import RequestError, shown

TEXT_PARTS = ("text", "input_text", "output_text")
_EXAMPLE = '{"role": "user", "content": "..."}'


def as_templates_expect(messages: Sequence[Any], *, knows_developer: bool) -> list[dict[str, Any]]:
    """The messages, JSON values, in the form that templates are written for. Raises RequestError if they have none."""
    return [_expected(number, message, knows_developer) for number, message in enumerate(messages)]


def with_calls_apart(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for a template that shows calls only without content: they follow as a message of their own."""
    listed: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            if message["content"].strip():
                listed.append({name: value for name, value in message.items() if name != "tool_calls"})
            message = message | {"content": None}
        listed.append(message)
    return listed


def joined_text(content: object) -> str | None:
    """The text of a content, its parts on lines of their own; None stays. Raises RequestError if it has none."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RequestError("is neither a text nor a list of parts; write " + _EXAMPLE)
    for part in content:
        if part.get("type") not in TEXT_PARTS:
            raise RequestError(f"has a part of type {shown(part.get('type'))}; only texts are understood, leave it out")
        if not isinstance(part.get("text"), str):
            raise RequestError('has a part without its text; write {"type": "text", "text": "..."}')
    return "\n".join(part["text"] for part in content)


def _expected(number: int, message: Any, knows_developer: bool) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"message {number} has no role; write {_EXAMPLE}")
    role = message["role"]
    try:
        content = joined_text(message.get("content"))
    except RequestError as error:
        raise RequestError(f"the content of message {number} {error}") from error
    if message.get("tool_calls") and role != "assistant":
        raise RequestError(f"message {number}, of the {shown(role)}, has tool_calls; only an assistant's may")
    if content is None and role != "assistant":  # templates would write "None"
        raise RequestError(f"message {number}, of the {shown(role)}, has no content; give it a text")
    expected = message | {
        "role": "system" if role == "developer" and not knows_developer else role,
        "content": content or "",  # not null: R1-0528's template looks into it
    }
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):
        expected["reasoning_content"] = reasoning  # whether a later turn sees it is for the template to say
    return expected
