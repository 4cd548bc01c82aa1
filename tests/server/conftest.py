"""A real server on a port of its own, within this process, and the real `openai` client."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from deepzig.engine.llm import LLM
from deepzig.engine.loading import load
from deepzig.server.listen import Server, bind
from deepzig.server.served_model import ServedModel
from deepzig.server.service import Service
from deepzig.server.settings import ServerSettings
from tests.talkers import TEMPLATES, Script, make_talker


@dataclass
class RunningServer:
    """A server that listens, and how to talk to it.

    `verify=False` as there is no TLS: the system's certificates take a client longer to read than most tests take.
    """

    server: Server
    llm: LLM | None
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return self.server.service

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Nothing runs and no page is held but by kept prefixes."""
        deadline = time.monotonic() + seconds
        while not self.is_idle:
            assert time.monotonic() < deadline, self.service.model.llm.stats()
            time.sleep(0.01)

    @property
    def n_answered(self) -> int:
        """HTTP requests that have come to an end, one way or the other."""
        (metric,) = self.service.metrics.http_requests.collect()
        return int(sum(sample.value for sample in metric.samples if sample.name.endswith("_total")))

    @property
    def is_idle(self) -> bool:
        stats = self.service.model.llm.stats()
        is_quiet = len(self.service.runs) == stats.n_running == stats.n_waiting == 0
        return is_quiet and stats.n_held_pages == stats.n_prefix_pages

    def openai(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": "any", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", http_client=openai.DefaultHttpxClient(verify=False), **given)

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, verify=False, **options)


class _Sharing(Service):
    """Its model outlives it: other servers of the tests have it too."""

    def close(self) -> None:
        pass


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def serving(llm: LLM | None, **settings: Any) -> Iterator[RunningServer]:
    """Serve `llm` (None: a model that never finishes loading) until the block ends."""
    service = _Sharing(ServerSettings(port=0, **settings))
    if llm is not None:
        service.serve(ServedModel.of(llm, reasoning_format=service.settings.reasoning_format))
    server = Server(service)
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield RunningServer(server, llm, listener.getsockname()[1])
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def stories() -> Iterator[LLM]:
    with load("stories") as llm:
        yield llm


@pytest.fixture(scope="module")
def strict(stories: LLM) -> Iterator[RunningServer]:
    """A server with little patience and small limits."""
    limits = {"receive_timeout": 0.6, "send_timeout": 0.6, "max_body_bytes": 4096, "max_connections": 12}
    with serving(stories, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def server(stories: LLM) -> Iterator[RunningServer]:
    with serving(stories) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module", params=["V2.5", "R1", "V3.1", "K2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, family: str) -> Iterator[RunningServer]:
    """A server with a model of the family's formats."""
    directory = make_talker(tmp_path_factory.mktemp("talker"), TEMPLATES[family])
    with load(directory) as llm, serving(llm) as running:
        yield running


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """script(server, text): chats of that server are answered with `text`; marks in it are control tokens, but not in
    script(server, text, quoted=True)."""

    def set_script(server: RunningServer, text: str, *, quoted: bool = False) -> None:
        assert server.llm is not None and server.llm.tokenizer is not None
        tokens = server.llm.tokenizer.encode(text, add_bos=False, allow_special=not quoted)
        vocab_size = server.llm.config.vocab_size
        monkeypatch.setattr("deepzig.server.chat.chat_constraint", lambda *_, **__: lambda: Script(tokens, vocab_size))

    return set_script
