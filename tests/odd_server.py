"""A server of OpenAI's API on loopback that answers as a test says: whole, oddly, or not at all."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Asked"], None]


class Asked(BaseHTTPRequestHandler):
    """A request, and what a reply may do with its connection."""

    protocol_version = "HTTP/1.1"
    odd: "OddServer"
    body: dict[str, Any]

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [{"id": "odd"}]}).encode())

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.odd.lock:
            self.odd.asked.append((self.path, self.headers.get("Authorization"), self.body))
            number = len(self.odd.asked) - self.odd.n_warm_ups
        with suppress(ConnectionError):  # who asked may be gone
            self.odd.reply_to(number)(self)

    def send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin_stream(self, status: int = 200) -> None:
        """Ends when the connection is closed, so that a stream that breaks off looks like one that is done."""
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def stream(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        self.begin_stream()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(pause_s)

    def log_message(self, *_: object) -> None:
        pass


class OddServer:
    """`reply` to every request; `replies` to the first ones after two that warm up."""

    n_warm_ups = 2

    def __init__(self) -> None:
        self.reply: Reply = plain
        self.replies: list[Reply] = []
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []  # path, authorization, body
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Asked,), {"odd": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def reply_to(self, number: int) -> Reply:
        """number: from 1; below that warm-ups."""
        return self.replies[number - 1] if 1 <= number <= len(self.replies) else self.reply


@contextmanager
def odd_server() -> Iterator[OddServer]:
    server = OddServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def text(content: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"text": content, "finish_reason": finish_reason}]})


def usage(prompt: int, answer: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": answer}})


DONE = b"data: [DONE]\n\n"
STOP = text("", "stop")


def streaming(*pieces: bytes) -> Reply:
    return lambda asked: asked.stream(*pieces)


def fails_with(status: int, content: bytes) -> Reply:
    return lambda asked: asked.send(status, content)


def plain(asked: Asked) -> None:
    """Three tokens in two pieces; a prompt has a token for each word, and two more."""
    prompt = asked.body.get("prompt") or asked.body["messages"][0]["content"]
    asked.stream(text(" a"), text(" b c", "stop"), usage(len(prompt.split()) + 2, 3), DONE, pause_s=0.002)
