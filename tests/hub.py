"""A hub on loopback that has what huggingface_hub asks for: the list of files, their sizes, and parts of them."""

import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, utils

COMMIT = "c" * 40


class FakeHub:
    """Serves one folder as the model `org/tiny`, or under other names, branch main, tag v1."""

    def __init__(self, directory: Path, names: Collection[str] = ("org/tiny",)) -> None:
        self.names = names
        paths = [path for path in directory.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(directory)): path.read_bytes() for path in paths}
        self.stated_sizes: dict[str, int] = {}  # where they differ from the truth
        self.fails_after: dict[str, list[int]] = {}  # file -> bytes after which each of its next connections ends
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self) -> list[str]:
        """Files whose content was asked for."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range", "")))
        name = "/".join(re.sub("^/api/models", "", path).split("/")[1:3])
        api = re.fullmatch(rf"/api/models/{name}/revision/(.+)", path)
        file = re.fullmatch(rf"/{name}/resolve/([^/]+)/(.+)", path)
        is_known = name in self.names
        if api and is_known and api[1] in ("main", "v1", COMMIT):
            self._send(request, json.dumps({"id": name, "sha": COMMIT, "siblings": self._siblings()}).encode())
        elif file and is_known and file[1] in ("main", "v1", COMMIT) and file[2] in self.files:
            self._send_file(request, file[2])
        else:
            code = "RevisionNotFound" if is_known else "RepoNotFound"
            self._send(request, b"", 404, {"X-Error-Code": code})

    def _siblings(self) -> list[dict[str, object]]:
        sizes = {name: len(content) for name, content in self.files.items()} | self.stated_sizes
        return [{"rfilename": name, "size": size} for name, size in sizes.items()]

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = re.fullmatch(r"bytes=(\d+)-.*", request.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        failing = self.fails_after.get(name)
        end = failing.pop(0) if failing and request.command == "GET" else len(content)
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(request, content[first:], 206 if start else 200, headers, max(end - first, 0))

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        sent: int | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:sent])
            request.close_connection = sent is not None and sent < len(body)


@contextmanager
def fake_hub(
    directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch, names: Collection[str] = ("org/tiny",)
) -> Iterator[FakeHub]:
    """A hub that runs, and huggingface_hub turned to it, with an empty cache in `home`."""
    hub = FakeHub(directory, names)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)  # for processes; here it was read when the package was imported
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    for variable in ("DEEPZIG_YES", "DEEPZIG_OFFLINE"):
        monkeypatch.setenv(variable, "")  # what a test sets is forgotten after it
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
        utils.close_session()
