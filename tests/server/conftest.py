# ruff: noqa: RUF001
"""A real server on a port of its own, within this process, and the real `openai` client."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from deepzig.checkpoint.model_names import BUNDLED
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
        is_quiet = len(self.service.board) == stats.n_running == stats.n_waiting == 0
        return is_quiet and stats.n_held_pages == stats.n_prefix_pages

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
        service.serve(ServedModel.of(llm, reasoning_format=service.settings.reasoning_format))
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


# ---- models that think and call, made of the bundled one

TOOL_MARKS = [
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>",
]  # fmt: skip
_CALLS_V31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments }}"
_CALLS_V3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n```"
_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}
{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}
{% elif m.role == 'tool' %}{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}
{% for c in m.tool_calls or [] %}CALLS{% endfor %}{{ eos_token }}{% endif %}{% endfor %}
<｜Assistant｜>GENERATION"""
TEMPLATES = {
    "V2.5": _TEMPLATE.replace("CALLS", _CALLS_V3).replace("GENERATION", ""),
    "R1": _TEMPLATE.replace("CALLS", _CALLS_V3).replace("GENERATION", "<think>{# </think> #}\n"),
    "V3.1": _TEMPLATE.replace("CALLS", _CALLS_V31).replace(
        "GENERATION", "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
    ),
}


def make_talker(directory: Path, template: str | None) -> Path:
    """The bundled model with the control tokens of DeepSeek-V3 in place of its rarest words, and a template."""
    source = BUNDLED["stories"]
    for name in ("config.json", "generation_config.json"):
        shutil.copy(source / name, directory / name)
    (directory / "model.safetensors").symlink_to(source / "model.safetensors")
    data = json.loads((source / "tokenizer.json").read_text())
    rarest = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)[-len(TOOL_MARKS) :]
    for mark, word in zip(TOOL_MARKS, rarest, strict=True):
        token = {"id": data["model"]["vocab"].pop(word), "content": mark, "special": False}
        data["added_tokens"].append({**data["added_tokens"][5], **token})
    data["model"]["merges"] = data["model"]["merges"][: -len(TOOL_MARKS)]
    for token in data["added_tokens"]:
        if token["content"] in ("<think>", "</think>"):
            token["special"] = False  # as in DeepSeek's own
    (directory / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["chat_template"]
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module", params=["V2.5", "R1", "V3.1"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, family: str) -> Iterator[RunningServer]:
    """A server with a model of the family's formats."""
    directory = make_talker(tmp_path_factory.mktemp("talker"), TEMPLATES[family])
    with load(directory) as llm, serving(llm) as running:
        yield running


class Script:
    """A constraint that allows one answer, whatever the model would like to say."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self._tokens, self._vocab_size, self._position = tokens, vocab_size, 0

    @property
    def is_complete(self) -> bool:
        return self._position == len(self._tokens)

    def allowed(self) -> np.ndarray:
        allowed = np.zeros(self._vocab_size, bool)
        allowed[self._tokens[self._position]] = True
        return allowed

    def accept(self, token: int) -> None:
        self._position += 1

    def copy(self) -> "Script":
        other = Script(self._tokens, self._vocab_size)
        other._position = self._position
        return other


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunningServer, str], None]:
    """script(server, text): chats of that server are answered with `text`; marks in it are control tokens."""

    def set_script(server: RunningServer, text: str) -> None:
        assert server.llm is not None and server.llm.tokenizer is not None
        tokens = server.llm.tokenizer.encode(text, add_bos=False)
        vocab_size = server.llm.config.vocab_size
        monkeypatch.setattr("deepzig.server.chat.chat_constraint", lambda *_, **__: Script(tokens, vocab_size))

    return set_script
