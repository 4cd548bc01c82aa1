"""/v1/ws: the chunks of a stream as frames, cancelling, keys, origins, limits."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from deepzig.engine.llm import LLM
from tests.server.conftest import RunningServer, serving

CHAT = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 8, "temperature": 0}
LONG = {**CHAT, "max_tokens": 900, "ignore_eos": True}
KEY = "a-key-of-the-tests"


def open_socket(server: RunningServer, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/ws", max_size=None, **options)


@pytest.fixture
def socket(server: RunningServer) -> Iterator[ClientConnection]:
    with open_socket(server) as socket:
        assert receive(socket) == {"type": "ready"}
        yield socket


@pytest.fixture(scope="module")
def locked(stories: LLM) -> Iterator[RunningServer]:
    with serving(stories, api_keys=(KEY,)) as running:
        yield running


def receive(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(timeout=60))


def answer(socket: ClientConnection, body: dict[str, Any]) -> list[Any]:
    """All frames up to the one that ends the answer."""
    socket.send(json.dumps(body))
    frames = []
    while not frames or not ({"type", "error"} & frames[-1].keys()):
        frames.append(receive(socket))
    return frames


def text_of(frames: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for frame in frames for choice in frame.get("choices", ()))


def test_frames_are_the_chunks_of_a_stream(socket: ClientConnection, server: RunningServer) -> None:
    body = {**CHAT, "stream_options": {"include_usage": True}}
    frames = answer(socket, body)
    assert frames[-1] == {"type": "done"}
    assert frames[-2]["usage"]["completion_tokens"] == 8
    with server.http() as http:
        events = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    for chunk in [*frames[:-1], *chunks]:
        for name in ("id", "created", "usage", "timings"):
            chunk.pop(name, None)
    assert frames[:-1] == chunks


def test_other_paths_are_not_found(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as caught, connect(f"ws://127.0.0.1:{server.port}/ws"):
        pass
    assert caught.value.response.status_code == 404 and b"nothing answers WebSocket '/ws'" in caught.value.response.body


def test_a_socket_outlives_the_deadline_of_requests(stories: LLM) -> None:
    with serving(stories, receive_timeout=0.3) as running, open_socket(running) as socket:
        assert receive(socket) == {"type": "ready"}
        time.sleep(0.6)
        assert answer(socket, CHAT)[-1] == {"type": "done"}


def test_several_answers_on_one_socket(socket: ClientConnection) -> None:
    first, second = answer(socket, CHAT), answer(socket, {"type": "chat", **CHAT})
    assert text_of(first) == text_of(second) != ""


def test_cancel_ends_the_answer_and_keeps_the_socket(socket: ClientConnection, server: RunningServer) -> None:
    socket.send(json.dumps(LONG))
    while "choices" not in receive(socket):
        pass
    socket.send('{"type": "cancel"}')
    frames = []
    while not frames or "type" not in frames[-1]:
        frames.append(receive(socket))
    assert frames[-1] == {"type": "cancelled"}
    assert len(server.service.runs) == 0
    assert answer(socket, CHAT)[-1] == {"type": "done"}


def test_each_answer_ends_once_however_often_and_soon_it_is_cancelled(socket: ClientConnection) -> None:
    for n_chunks in (0, 0, 0, 1, 2, 3):
        socket.send(json.dumps(LONG))
        for _ in range(n_chunks):
            assert "choices" in receive(socket)
        for _ in range(3):
            socket.send('{"type": "cancel"}')
        frames = [receive(socket)]
        while "choices" in frames[-1]:
            frames.append(receive(socket))
        assert frames[-1] == {"type": "cancelled"}
    assert answer(socket, CHAT)[-1] == {"type": "done"}


def test_second_chat_while_one_runs_is_refused(socket: ClientConnection) -> None:
    socket.send(json.dumps(LONG))
    socket.send(json.dumps(CHAT))
    frames = [receive(socket)]
    while "error" not in frames[-1]:
        frames.append(receive(socket))
    assert (frames[-1]["error"]["code"], frames[-1]["error"]["type"]) == ("busy", "invalid_request_error")
    socket.send('{"type": "cancel"}')


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("[1]", "invalid_value"),
        ("no JSON", "invalid_json"),
        (b"\x00", "invalid_json"),
        ('{"messages": 5}', "invalid_value"),
        ('{"type": "dance"}', "invalid_value"),
        ('{"type": "shutdown"}', "invalid_value"),
        (json.dumps({**CHAT, "model": "other"}), "model_not_found"),
    ],
)
def test_bad_messages_are_errors_and_the_socket_stays(
    socket: ClientConnection, message: str | bytes, code: str
) -> None:
    socket.send(message)
    assert receive(socket)["error"]["code"] == code
    assert answer(socket, CHAT)[-1] == {"type": "done"}


def test_closing_the_socket_ends_the_answer(server: RunningServer) -> None:
    with open_socket(server) as socket:
        socket.send(json.dumps(LONG))
        while "choices" not in receive(socket):
            pass
    deadline = time.monotonic() + 10
    while len(server.service.runs) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.service.runs) == 0


def test_too_large_a_message_closes_the_socket(socket: ClientConnection) -> None:
    with pytest.raises(ConnectionClosed) as caught:
        socket.send("x" * (9 << 20))
        socket.recv(timeout=60)
    # The close frame is lost when the server closes while the client still sends.
    assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_key_comes_in_the_first_message_or_a_header(locked: RunningServer) -> None:
    with open_socket(locked) as socket:
        socket.send(json.dumps({"type": "auth", "token": KEY}))
        assert receive(socket) == {"type": "ready"}
        assert answer(socket, CHAT)[-1] == {"type": "done"}
    with open_socket(locked, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        assert receive(socket) == {"type": "ready"}


@pytest.mark.parametrize("message", [{"type": "auth", "token": "wrong-wrong"}, {"type": "auth"}, CHAT])
def test_without_the_key_the_socket_is_closed(locked: RunningServer, message: dict[str, Any]) -> None:
    with open_socket(locked) as socket:
        socket.send(json.dumps(message))
        assert closing(socket) == ("invalid_api_key", 1008)


def test_key_must_come_in_time_and_alone(locked: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long message is not even parsed; and whoever says nothing is told why the socket is closed."""
    with open_socket(locked) as socket:
        socket.send(json.dumps({"type": "auth", "token": KEY, "padding": "x" * 5000}))
        assert closing(socket) == ("invalid_api_key", 1008)
    monkeypatch.setattr("deepzig.server.websocket.AUTH_TIMEOUT_S", 0.1)
    with open_socket(locked) as socket:
        assert closing(socket) == ("invalid_api_key", 1008)


def closing(socket: ClientConnection) -> tuple[str, int]:
    """Codes of the error frame and of the close frame that come next."""
    code = receive(socket)["error"]["code"]
    with pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=60)
    assert caught.value.rcvd is not None
    return code, caught.value.rcvd.code


def test_wrong_key_in_the_header_and_foreign_origin_get_no_socket(
    locked: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        open_socket(locked, additional_headers={"Authorization": "Bearer wrong-wrong"})
    assert caught.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as caught:
        open_socket(locked, origin="https://evil.example")
    assert caught.value.response.status_code == 403
    assert b'"code":"invalid_origin"' in caught.value.response.body
    with locked.http() as http:
        http.get("/livez")  # the server is done with what came before
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
