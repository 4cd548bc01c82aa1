"""Bodies, headers and connections beyond the limits, and senders that are too slow."""

import asyncio
import json
import time
from typing import Any

import pytest

from deepzig.server.app import make_app
from tests.server.conftest import RunningServer
from tests.server.raw_http import post_head, raw, read_all


def test_bodies_over_the_limit(strict: RunningServer) -> None:
    body = json.dumps({"prompt": "x" * 5000}).encode()
    headers = {"content-type": "application/json"}
    with strict.http() as http:
        for content in (body, iter([body[:2000], body[2000:]])):  # with a length, and in chunks
            reply = http.post("/v1/completions", content=content, headers=headers)
            assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20000 + b"\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000,
        b"\x16\x03\x01 nonsense\r\n\r\n",
    ],
    ids=["headers", "long header", "no HTTP"],
)
def test_malformed_or_endless_headers(strict: RunningServer, content: bytes) -> None:
    try:
        reply = read_all(raw(strict, content))
    except ConnectionError:
        return  # cut while still sending
    assert reply.startswith(b"HTTP/1.1 400") and b'"code":"invalid_http"' in reply


@pytest.mark.parametrize("headers", [[(b"x", b"y" * 33_000)], [(b"x", b"y")] * 17_000], ids=["one", "many"])
def test_large_headers_that_came_at_once(server: RunningServer, headers: list[tuple[bytes, bytes]]) -> None:
    """Without a connection, which may break them into pieces."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body is not wanted")

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost"), *headers]}
    asyncio.run(make_app(server.service)(scope, receive, send))
    assert sent[0]["status"] == 431 and json.loads(sent[1]["body"])["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"],
    ids=["nothing", "half a line", "headers without end"],
)
def test_slow_headers_are_cut_off(strict: RunningServer, begun: bytes) -> None:
    reply = read_all(raw(strict, begun))
    assert reply.startswith(b"HTTP/1.1 408") and b"request_timeout" in reply


def test_slow_bodies_are_cut_off(strict: RunningServer) -> None:
    reply = read_all(raw(strict, post_head(100), b"{"))
    assert reply.startswith(b"HTTP/1.1 408") and b"request_timeout" in reply


def test_too_many_connections(strict: RunningServer) -> None:
    held = [raw(strict) for _ in range(12)]
    time.sleep(0.1)
    reply = read_all(raw(strict))
    assert reply.startswith(b"HTTP/1.1 503") and b"overloaded" in reply
    for connection in held:
        connection.close()
    time.sleep(0.1)
    with strict.http() as http:
        assert http.get("/health").status_code == 200
