"""A server that answers what the page's tests tell it to: the page's files and the shape of the API, without a model.

For what the bundled model never says: HTML, Markdown, thoughts, errors in mid-stream, a queue. `reply(body)` yields
events of a stream; a float among them is a pause in seconds. All else about the page is tested with `deepzig serve`.
"""

import json
import mimetypes
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from deepzig.server.app import CSP, STATIC

Event = dict[str, Any] | float
Reply = Callable[[dict[str, Any]], Iterable[Event]]

MODEL = {
    "id": "DeepSeek-V3.1-int4",
    "max_model_len": 131072,
    "meta": {
        "n_params": 671_026_419_200, "size": 377_000_000_000, "format": "int4 g64",
        "has_chat_template": True, "has_thinking": True,
    },
}  # fmt: skip


def delta(**fields: Any) -> Event:
    """A chunk of a chat."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def ending(reason: str = "stop", *, prompt: int = 24, completion: int = 40) -> list[Event]:
    """The last chunks of a chat."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": usage, "timings": {"predicted_per_second": 6.4}},
    ]


def answering(*texts: str, **stats: int) -> Reply:
    """A reply of these pieces."""
    return lambda body: [*(delta(content=text) for text in texts), *ending(**stats)]


def progress(total: int, processed: int, *, queue_position: int = 0, time_ms: int = 0) -> Event:
    """A chunk that tells how far the prompt is."""
    figures = {"total": total, "cache": 0, "processed": processed, "time_ms": time_ms, "queue_position": queue_position}
    return {"choices": [{"index": 0, "delta": {}}], "prompt_progress": figures}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a browser asks for all files at once


class ScriptedServer:
    """Serves on a free port of the loopback until `close`. `bodies` keeps what the page sent."""

    def __init__(self, reply: Reply, *, model: dict[str, Any] = MODEL, status: dict[str, Any] | None = None) -> None:
        self.reply, self.model, self.status = reply, model, status
        self.bodies: list[dict[str, Any]] = []
        self.ended_by_page = threading.Event()  # the page closed a stream
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None: ...

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/":
                    self.send(200, (STATIC / "index.html").read_bytes(), "text/html", {"content-security-policy": CSP})
                elif path.startswith("/static/"):
                    file = STATIC / path.removeprefix("/static/").replace("/", "")
                    self.send(200, file.read_bytes(), mimetypes.guess_type(file.name)[0] or "text/plain")
                elif path == "/v1/models":
                    self.send_json({"data": [scripted.model]})
                elif path == "/status" and scripted.status is not None:
                    self.send_json(scripted.status)
                else:
                    self.send_json({"error": {"message": "there is no such thing", "code": "not_found"}}, 404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/tokenize":
                    self.send_json({"tokens": [ord(char) for char in json.dumps(body)]})
                    return
                scripted.bodies.append(body)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("x-request-id", "req_scripted")
                self.end_headers()
                try:
                    for event in scripted.reply(body):
                        if isinstance(event, float):
                            time.sleep(event)
                            self.wfile.write(b": keep-alive\n\n")
                        else:
                            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    scripted.ended_by_page.set()

            def send_json(self, item: object, status: int = 200) -> None:
                self.send(status, json.dumps(item).encode(), "application/json")

            def send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                fields = {"content-type": kind, "content-length": str(len(content))} | (headers or {})
                for name, value in fields.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler


Scripted = Callable[..., ScriptedServer]  # the fixture `scripted`
