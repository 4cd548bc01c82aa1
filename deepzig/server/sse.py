"""Server-sent events: how objects become the lines of a stream (WHATWG HTML, section 9.2). Called by `http_reply`."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the events
]

_encoder = msgspec.json.Encoder()


def event(item: Struct) -> bytes:
    """One event. An item with a `type` (those of /v1/responses) has it as the event's name too."""
    name = getattr(item, "type", None)
    content = _encoder.encode(item)
    if name is None:
        return b"data: " + content + b"\n\n"
    return b"event: " + str(name).encode() + b"\ndata: " + content + b"\n\n"


def events(items: Iterable[Struct]) -> bytes:
    """Several events, to be sent together."""
    return b"".join(map(event, items))
