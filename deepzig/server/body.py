"""Reads the body of a request within its limits, and decodes it. Called by the endpoints."""

import asyncio
import re
from typing import TypeVar

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request

from deepzig.server.failures import ApiError

T = TypeVar("T")
MAX_NESTING = 64  # of JSON: schemas and tools are shallow, and recursion is not free
MAX_REASON_CHARS = 300  # of a message: what the client sent may stand in it
_PATH = re.compile(r"`(\$[^`]*)`$")  # after "`key` in" where a key is meant
_PART_TYPE = re.compile(r"\.content\[\d+\]\.type`$")  # of a message's part, as image_url


async def read_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is too long, 408 when it takes too long to come."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {timeout:g} s", code="request_timeout") from None
    except ClientDisconnect:
        raise ApiError(408, "the client left before the body was complete", code="client_disconnected") from None
    return bytes(body)


def decode(body: bytes | str, kind: type[T]) -> T:
    """`body` as a struct. Raises ApiError 400 that names the field."""
    try:
        if _nesting_exceeds(body, MAX_NESTING):
            raise ApiError(400, f"the JSON is nested more than {MAX_NESTING} deep; flatten it", code="invalid_json")
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        reason, at, place = str(error).rpartition(" - at ")
        found = _PATH.search(place)
        param = found[1].removeprefix("$").removeprefix(".") if found else None
        hint = "; this server reads text only" if _PART_TYPE.search(place) else ""
        message = f"{reason[:MAX_REASON_CHARS]}{hint}{at}{place}"
        raise ApiError(400, message, code="invalid_value", param=param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = _half_character(body) or f"the body is no JSON: {error}"
        raise ApiError(400, reason, code="invalid_json") from None


# One pass, whatever the bytes are: possessive, and a string may lack its end, as in no JSON it can.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and -1 as int8
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def _nesting_exceeds(body: bytes | str, limit: int) -> bool:
    """Whether brackets outside of strings are nested deeper than `limit`."""
    content = _as_bytes(body)
    if content.count(b"{") + content.count(b"[") <= limit:
        return False
    steps = np.frombuffer(_STRING.sub(b"", content).translate(_STEPS, _OTHERS), np.int8)
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > limit)


# What may stand before a surrogate without its other half: other characters, escapes, and whole pairs.
_LONE_SURROGATE = re.compile(
    rb"(?:[^\\]++|\\(?!u[dD][89a-fA-F]).|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+\\u[dD]",
    re.DOTALL,
)


def _half_character(body: bytes | str) -> str | None:
    """What is wrong with a body that has a lone surrogate, which msgspec takes for a text without its end."""
    found = _LONE_SURROGATE.match(_as_bytes(body))
    if found is None:
        return None
    at = found.end() - len(rb"\ud")
    return f"the body has half of a surrogate pair at byte {at}, which is no character; send both halves, or \\ufffd"


def _as_bytes(body: bytes | str) -> bytes:
    return body.encode(errors="surrogatepass") if isinstance(body, str) else body


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes; shorten it", code="request_too_large")
