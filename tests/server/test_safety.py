"""Keys on every route, foreign hosts and pages, bodies too large or too slow, clients that leave or do not read."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from deepzig.engine.llm import LLM
from deepzig.engine.sampling import TokenLogprob
from deepzig.errors import ServerError
from deepzig.server.app import Routes, make_app
from deepzig.server.settings import ServerSettings
from tests.server.conftest import RunningServer, serving

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")
PUBLIC = {"/", "/health", "/livez"}
LONG = {"prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True}


@pytest.fixture(scope="module")
def locked(stories: LLM) -> Iterator[RunningServer]:
    with serving(stories, api_keys=KEYS) as running:
        yield running


@pytest.fixture(scope="module")
def strict(stories: LLM) -> Iterator[RunningServer]:
    """A server with little patience and small limits."""
    limits = {"receive_timeout": 0.6, "send_timeout": 0.6, "max_body_bytes": 4096, "max_connections": 12}
    with serving(stories, **limits) as running:
        yield running


def all_routes(server: RunningServer) -> list[tuple[str, str]]:
    """(method, path) of everything that the server answers, taken from its router: a new route cannot be missed."""
    found = []
    for route in Routes(server.service).listed():
        assert isinstance(route, Route | Mount | WebSocketRoute)
        if isinstance(route, Route):
            found += [(method, route.path.replace("{id:path}", "stories")) for method in sorted(route.methods or ())]
    return found


# ---- keys, hosts, origins


def test_every_route_but_the_public_ones_needs_a_key(locked: RunningServer) -> None:
    routes = all_routes(locked)
    assert {"/v1/models", "/metrics", "/status", "/tokenize", "/openapi.json"} <= {path for _, path in routes}
    headers = {"content-type": "application/json"}
    good = [
        {"authorization": f"Bearer {KEYS[0]}"},
        {"authorization": f"bearer {KEYS[1]}"},
        {"X-Api-Key": KEYS[1]},
    ]
    bad: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": KEYS[0]},
        {"authorization": f"Basic {KEYS[0]}"},
        {"x-api-key": f"{KEYS[0]} "[:-2]},
    ]
    with locked.http() as http:
        for method, path in routes:
            for key in bad:
                status = http.request(method, path, headers=headers | key, content=b"{}").status_code
                assert (status == 401) is (path not in PUBLIC), (method, path, key, status)
            for key in good:
                assert http.request(method, path, headers=headers | key, content=b"{}").status_code != 401
        assert http.get("/v1/no-such-route").status_code == 401, "nor does it tell which routes there are"


def test_openai_client_without_the_key(locked: RunningServer) -> None:
    with locked.openai(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with locked.openai(api_key=KEYS[0]) as client:
        assert client.models.list().data


def test_prefixes_are_not_shared_between_keys(locked: RunningServer) -> None:
    prompt = "A fox and a hen sat by the river all day long. " * 8
    cached = []
    for key in (KEYS[0], KEYS[1], KEYS[0]):
        with locked.openai(api_key=key) as client:
            usage = client.completions.create(model="", prompt=prompt, max_tokens=1).usage
            assert usage is not None
            cached.append(usage.prompt_cache_hit_tokens)
    assert max(cached[:2]) <= 1 < cached[2]  # 1: the token that begins all texts, from requests of other tests


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost:1234"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "a b"}, 403),
        ({"host": "["}, 403),
        ({"host": "]["}, 403),
        ({"host": "[abc]"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1", "host": "localhost:2"}, 403),
        ({"origin": "http://localhost:2", "host": "localhost:2"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
def test_foreign_hosts_and_pages_are_refused(
    server: RunningServer, headers: dict[str, str], status: int, path: str
) -> None:
    with server.http() as http:
        reply = http.get(path, headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_what_a_page_may_post_without_asking_is_refused(server: RunningServer, kind: str | None) -> None:
    with server.http() as http:
        headers = {} if kind is None else {"content-type": kind}
        assert http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers).status_code == 415
        zipped = {"content-type": "application/json", "content-encoding": "gzip"}
        assert http.post("/v1/completions", content=b"\x1f\x8b", headers=zipped).status_code == 415


def test_admitted_origins_and_hosts(stories: LLM) -> None:
    origin = "https://chat.example"
    with serving(stories, allowed_origins=(origin,), allowed_hosts=("box.example",)) as running, running.http() as http:
        reply = http.get("/v1/models", headers={"origin": origin, "host": "box.example"})
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == origin
        preflight = http.options("/v1/chat/completions", headers={"origin": origin})
        assert preflight.status_code == 204 and "authorization" in preflight.headers["access-control-allow-headers"]
        for wanted, is_allowed in (("authorization, content-type, x-stainless-os", True), ("x-a<script>", False)):
            asks = {"origin": origin, "access-control-request-headers": wanted}
            preflight = http.options("/v1/chat/completions", headers=asks)
            assert (preflight.headers["access-control-allow-headers"] == wanted) is is_allowed
            assert preflight.headers["vary"] == "access-control-request-headers, origin"
        refused = http.get("/v1/models/other", headers={"origin": origin})
        assert {"x-request-id", "x-should-retry"} <= refused.headers.keys()
        assert refused.headers["access-control-expose-headers"] == "x-request-id, retry-after, x-should-retry"
        assert http.get("/v1/models", headers={"origin": "https://other.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.example"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ServerError, match="--insecure"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, api_keys=KEYS).is_loopback
    assert ServerSettings(host=host, insecure=True).insecure


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": ("short",)}, {"api_keys": ("schlüssel-schlüssel",)}, {"allowed_origins": ("chat.example",)},
        {"allowed_origins": ("http://[",)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(ServerError):
        ServerSettings(**settings)


def test_keys_are_not_shown() -> None:
    assert KEYS[0] not in repr(ServerSettings(api_keys=KEYS))


# ---- sizes and slow senders


def test_bodies_over_the_limit(strict: RunningServer) -> None:
    body = json.dumps({"prompt": "x" * 5000}).encode()
    headers = {"content-type": "application/json"}
    with strict.http() as http:
        for content in (body, iter([body[:2000], body[2000:]])):  # with a length, and in chunks
            reply = http.post("/v1/completions", content=content, headers=headers)
            assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


def post_head(length: int) -> bytes:
    """Head of a completions request."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def raw(server: RunningServer, *pieces: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    for piece in pieces:
        connection.sendall(piece)
    return connection


def read_all(connection: socket.socket) -> bytes:
    with connection:
        content = b""
        while piece := connection.recv(65536):
            content += piece
        return content


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


# ---- clients that leave, or do not read


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", ["before the prompt", "in the prompt", "in the answer"])
def test_a_client_that_leaves_leaves_nothing_running(
    server: RunningServer, stream: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = server.llm
    assert llm is not None
    cancelled = llm.stats().finished.get("cancelled", 0)
    prompt = "Once upon a time " * (200 if moment != "in the answer" else 1)
    body = json.dumps({**LONG, "prompt": prompt, "stream": stream, "cache_salt": f"{moment}{stream}"}).encode()
    answered = server.n_answered
    connection = raw(server, post_head(len(body)), body)
    if moment == "in the prompt":
        wait_for(lambda: llm.stats().n_running > 0)
    elif moment == "in the answer":
        decoded = llm.stats().tokens_decoded
        wait_for(lambda: llm.stats().tokens_decoded > decoded + 5)
    connection.close()
    wait_for(lambda: server.n_answered > answered)
    server.wait_until_idle()
    if moment == "in the answer":
        assert llm.stats().finished.get("cancelled", 0) == cancelled + 1


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_prompts_of_clients_that_left_are_not_scored_on(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """While more clients have long prompts scored than there are threads, others are served."""
    going: set[object] = set()

    def endless(*_: object) -> Iterator[list[TokenLogprob]]:
        mark = object()
        going.add(mark)
        try:
            while True:
                time.sleep(0.01)
                yield []
        finally:
            going.remove(mark)

    monkeypatch.setattr(stories, "stream_prompt_logprobs", endless)
    monkeypatch.setattr("deepzig.server.http_reply.FIRST_SIGN_S", 0.1)
    body = json.dumps({"prompt": "One", "echo": True, "logprobs": 1, "max_tokens": 0, "stream": True}).encode()
    with serving(stories) as running, running.http() as http:
        connections = [raw(running, post_head(len(body)), body) for _ in range(40)]
        wait_for(lambda: len(running.service.board) == 40 and going)
        assert http.post("/v1/completions", json={"prompt": "One", "max_tokens": 1}, timeout=20).status_code == 200
        content = b""
        while b": keep-alive" not in content:
            content += connections[0].recv(4096)
        for connection in connections:
            connection.close()
        wait_for(lambda: not going)
        running.wait_until_idle()
        assert 'deepzig_requests_total{reason="cancelled"} 40.0' in http.get("/metrics").text


def test_a_client_that_does_not_read_is_cut_off(strict: RunningServer) -> None:
    body = json.dumps({**LONG, "n": 8, "logprobs": 20, "stream": True}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", strict.port))
    connection.sendall(post_head(len(body)) + body)
    wait_for(lambda: len(strict.service.board) == 1)
    strict.wait_until_idle(60)
    content = read_all(connection)
    assert content.startswith(b"HTTP/1.1 200") and not content.endswith(b"0\r\n\r\n"), "the stream is broken off"


# ---- failures of the model


def test_nan_fails_one_request_alone(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the text that begins with " cat" become NaN; its neighbour goes on."""
    llm = server.llm
    assert llm is not None and llm.tokenizer is not None
    from deepzig.engine.sampling import Sampler

    choose, (cat,) = Sampler.choose, llm.tokenizer.encode(" cat", add_bos=False)

    def spoilt(self: Sampler, logits: np.ndarray) -> int:
        return choose(self, logits * np.float32(np.nan) if self._params.logit_bias.get(cat) else logits)

    monkeypatch.setattr(Sampler, "choose", spoilt)
    with server.openai() as client:
        neighbour = client.completions.create(model="", prompt="One", max_tokens=60, stream=True)
        next(iter(neighbour))
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="", prompt="Two", logit_bias={str(cat): 1})
        assert caught.value.code == "nonfinite_logits"
        assert caught.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError, match="NaN"):
            list(client.completions.create(model="", prompt="Two", logit_bias={str(cat): 1}, stream=True))
        assert list(neighbour)[-1].choices[0].finish_reason in ("stop", "length")
    server.wait_until_idle()


def test_model_that_is_still_loading() -> None:
    with serving(None) as running, running.http() as http:
        assert http.get("/livez").status_code == 200
        for reply in (http.get("/health"), http.get("/v1/models"), http.post("/v1/completions", json={"prompt": "x"})):
            assert reply.status_code == 503 and reply.json()["error"]["message"] == "Loading model"
            assert reply.headers["retry-after"]
        assert http.get("/status").json()["state"] == "loading"
        assert b"deepzig_model_ready 0" in http.get("/metrics").content


def test_waiting_clients_get_signs_of_life(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from the engine for a while: a stream has comments, a whole reply spaces before it."""
    monkeypatch.setattr("deepzig.server.http_reply.FIRST_SIGN_S", 0.1)
    monkeypatch.setattr("deepzig.server.http_reply.PADDING_AFTER_S", 0.1)
    from deepzig.server.run import Run

    taken, began = Run._taken, time.monotonic()
    monkeypatch.setattr(Run, "_taken", lambda self: [] if self.elapsed_s < 0.5 else taken(self))
    with serving(stories, ping_interval=0.1) as running, running.http() as http:
        body = {"prompt": "One", "max_tokens": 3}
        events = http.post("/v1/completions", json={**body, "stream": True}).text
        whole = http.post("/v1/completions", json=body)
    assert time.monotonic() - began >= 1
    assert events.startswith(": keep-alive\n\n")
    assert whole.text.startswith(" ") and whole.json()["choices"][0]["text"]


def test_log_lines_cannot_be_forged(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "deepzig.server")
    with server.http() as http:
        http.get("/v1/models/x%0aPOST /forged 200%1b[31m")
    wait_for(lambda: any("forged" in record.getMessage() for record in caplog.records))
    assert all("\n" not in record.getMessage() and "\x1b" not in record.getMessage() for record in caplog.records)


def test_the_page_may_do_little(server: RunningServer) -> None:
    with server.http() as http:
        reply = http.get("/")
    if reply.status_code == 200:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
