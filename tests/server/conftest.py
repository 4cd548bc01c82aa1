"""A real server on a port of its own, within this process, and the real `openai` client."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from deepzig.engine.llm import LLM, load
from deepzig.server.listen import Server, bind
from deepzig.server.served_model import ServedModel
from deepzig.server.service import Service
from deepzig.server.settings import ServerSettings


@dataclass
class RunningServer:
    """A server that listens, and how to talk to it."""

    server: Server
    llm: LLM | None
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return self.server.service

    def openai(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": "any", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, **options)


@contextmanager
def serving(llm: LLM | None, **settings: Any) -> Iterator[RunningServer]:
    """Serve `llm` (None: a model that never finishes loading) until the block ends."""
    service = Service(ServerSettings(port=0, **settings))
    if llm is not None:
        service.serve(ServedModel.of(llm))
    server = Server(service, close_model=False)
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
def server(stories: LLM) -> Iterator[RunningServer]:
    with serving(stories) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client
