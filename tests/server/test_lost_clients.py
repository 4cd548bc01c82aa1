"""Clients that leave or do not read, and failures of the model while they wait."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from deepzig.engine.llm import LLM
from deepzig.engine.results import StreamChunk
from deepzig.engine.sampling import SamplingParams, TokenConstraint, TokenLogprob
from deepzig.server.failures import ApiError
from deepzig.server.run import MAX_BACKLOG, MAX_COMPILING, Ask, Run
from deepzig.server.service import Service
from deepzig.server.settings import ServerSettings
from tests.server.conftest import RunningServer, serving, wait_for
from tests.server.raw_http import post_head, raw, read_all
from tests.talkers import Script

LONG = {"prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True}


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
        decoded = llm.stats().answer_tokens
        wait_for(lambda: llm.stats().answer_tokens > decoded + 5)
    connection.close()
    wait_for(lambda: server.n_answered > answered)
    server.wait_until_idle()
    if moment == "in the answer":
        assert llm.stats().finished.get("cancelled", 0) == cancelled + 1


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
        wait_for(lambda: len(running.service.runs) == 40 and going)
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
    wait_for(lambda: len(strict.service.runs) == 1)
    strict.wait_until_idle(60)
    content = read_all(connection)
    assert content.startswith(b"HTTP/1.1 200") and not content.endswith(b"0\r\n\r\n"), "the stream is broken off"


@pytest.mark.parametrize(("n_prompts", "n", "is_cut"), [(1, 1, True), (1, 3, False), (3, 1, False)])
def test_what_may_be_left_unread_grows_with_the_answers(stories: LLM, n_prompts: int, n: int, is_cut: bool) -> None:
    async def failure() -> str | None:
        ask = Ask(prompts=[[5]] * n_prompts, params=SamplingParams(max_tokens=1, n=n))
        run = await Service(ServerSettings()).runs.start(stories, ask)
        try:
            for _ in range(2 * MAX_BACKLOG):
                run.on_update()
            await run.next(60)
        except ApiError as error:
            return error.code
        finally:
            run.close("stop")
        return None

    assert asyncio.run(failure()) == ("slow_reader" if is_cut else None)


def test_grammars_are_compiled_apart(stories: LLM) -> None:
    """While hostile ones take all their threads other requests are served; of clients that left none is begun."""
    hold = threading.Event()
    begun: list[None] = []
    params = SamplingParams(max_tokens=1)

    def compile_slowly() -> TokenConstraint:
        begun.append(None)
        hold.wait()
        raise ApiError(400, "too late")

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        runs = Service(ServerSettings()).runs
        slow = Ask(prompts=[[5]], params=params, compile_constraint=compile_slowly)
        starting = [asyncio.ensure_future(runs.start(stories, slow)) for _ in range(MAX_COMPILING + 3)]
        try:
            async with asyncio.timeout(20):
                while len(begun) < MAX_COMPILING:
                    await asyncio.sleep(0.01)
                for constraint in (None, Script([5], stories.config.vocab_size)):
                    run = await runs.start(stories, Ask(prompts=[[5]], params=params, constraint=constraint))
                    while not run.is_finished:
                        await run.next(1)
                    run.close("stop")
                for each in starting:
                    each.cancel()
                await asyncio.wait(starting)
        finally:
            hold.set()
        async with asyncio.timeout(20):
            while len(runs):
                await asyncio.sleep(0.01)

    asyncio.run(serve())
    assert len(begun) == MAX_COMPILING


# ---- failures of the model


def test_nan_fails_one_request_alone(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the text that begins with " cat" become NaN; its neighbour goes on."""
    llm = server.llm
    assert llm is not None and llm.tokenizer is not None
    from deepzig.engine.sampling import Sampler

    sample, (cat,) = Sampler.sample, llm.tokenizer.encode(" cat", add_bos=False)

    def spoilt(self: Sampler, logits: np.ndarray) -> int:
        return sample(self, logits * np.float32(np.nan) if self._params.logit_bias.get(cat) else logits)

    monkeypatch.setattr(Sampler, "sample", spoilt)
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
    taken, began = Run._taken, time.monotonic()
    monkeypatch.setattr(Run, "_taken", lambda self: [] if self.elapsed_s < 0.5 else taken(self))
    with serving(stories, ping_interval=0.1) as running, running.http() as http:
        body = {"prompt": "One", "max_tokens": 3}
        events = http.post("/v1/completions", json={**body, "stream": True}).text
        whole = http.post("/v1/completions", json=body)
    assert time.monotonic() - began >= 1
    assert events.startswith(": keep-alive\n\n")
    assert whole.text.startswith(" ") and whole.json()["choices"][0]["text"]


def test_a_whole_reply_that_fails_late_is_broken_off(
    stories: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its status is 200 already: a client must not take the error for an answer."""
    begun: set[Run] = set()

    async def fail_at_the_second_time(self: Run, timeout: float) -> list[tuple[int, StreamChunk]]:
        if self in begun:
            raise ApiError(503, "no more", code="overloaded")
        begun.add(self)
        return []

    monkeypatch.setattr("deepzig.server.http_reply.PADDING_AFTER_S", 0.0)
    monkeypatch.setattr(Run, "next", fail_at_the_second_time)
    body = json.dumps(LONG).encode()
    with serving(stories) as running, running.openai() as client:
        content = read_all(raw(running, post_head(len(body)), body))
        of_http_1_0 = read_all(raw(running, post_head(len(body)).replace(b"HTTP/1.1", b"HTTP/1.0"), body))
        with pytest.raises(openai.APIConnectionError):
            client.completions.create(model="", prompt="One")
        running.wait_until_idle()
    assert content.startswith(b"HTTP/1.1 200") and not content.endswith(b"0\r\n\r\n")
    assert b'"message":"no more"' in content
    assert of_http_1_0.startswith(b"HTTP/1.1 503")  # there a reply ends with its connection: nothing may begin early
    assert not caplog.records
