"""Load for a server: what is asked, how requests are spread over time, and what ends everything."""

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from deepzig.errors import NetworkError, RequestError
from deepzig.evaluate.http_answer import Answer
from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target, run
from tests.evaluate.conftest import NESTED, load
from tests.odd_server import DONE, STOP, Asked, OddServer, fails_with, streaming, text, usage

# ---- load


def test_requests_ask_for_what_the_plan_says(server: OddServer) -> None:
    result = LoadResult()
    plan = LoadPlan(4, prompt_tokens=30, max_tokens=5, concurrency=2, ignore_eos=True)
    run(Target(server.url + "/v1/", "chat", model="chosen", api_key="secret"), plan, result, lambda: None)
    asked = server.asked[server.n_warm_ups :]
    assert {(path, key) for path, key, _ in asked} == {("/v1/chat/completions", "Bearer secret")}
    prompts = [body.pop("messages")[0]["content"] for _, _, body in asked]
    assert len(set(prompts)) == 4
    assert {len(prompt.split()) for prompt in prompts} == {28}  # this server counts two tokens more than words
    for _, _, body in asked:
        assert body == {"model": "chosen", "max_tokens": 5, "temperature": 0, "stream": True, "ignore_eos": True,
                        "stream_options": {"include_usage": True}}  # fmt: skip
    assert result.prompt_tokens == 30 and result.answer_tokens == 12 and result.counts_tokens


def test_without_usage_words_and_chunks_are_counted(server: OddServer) -> None:
    server.reply = streaming(text(" a"), text(" b"), STOP)
    result = load(server)
    assert server.asked[0][2]["model"] == "odd"
    assert "ignore_eos" not in server.asked[-1][2] and server.asked[-1][1] is None
    assert len(server.asked[-1][2]["prompt"].split()) == 10
    assert result.prompt_tokens is None and result.answer_tokens == 2 and not result.counts_tokens


def test_a_server_that_cuts_prompts_gets_none_that_are_longer(server: OddServer) -> None:
    server.reply = lambda asked: asked.stream(text(" a"), usage(min(len(asked.body["prompt"].split()), 12), 1), DONE)
    load(server, prompt_tokens=1000)  # by that count a word has 4 thousandths of a token
    assert len(server.asked[-1][2]["prompt"].split()) == 1000


def test_as_many_requests_at_once_as_allowed(server: OddServer) -> None:
    three = threading.Barrier(3, timeout=60)
    n_running: list[int] = []

    def reply(asked: Asked) -> None:
        with server.lock:
            n_running.append(n_running[-1] + 1 if n_running else 1)
        three.wait()
        with server.lock:
            n_running.append(n_running[-1] - 1)
        asked.stream(text(" a", "stop"))

    server.replies = [reply] * 9
    assert len(load(server, 9, concurrency=3, timeout_s=100.0).answers) == 9
    assert max(n_running) == 3


def test_with_a_rate_waiting_for_a_slot_counts(server: OddServer) -> None:
    def reply(asked: Asked) -> None:
        time.sleep(0.1)
        asked.stream(text(" a", "stop"))

    server.reply = reply
    result = load(server, 4, concurrency=1, rate=1000.0)
    waits = [answer.text_times[0] - answer.asked for answer in result.answers]
    assert max(waits) > 0.35  # the last one waited for three others
    assert len(load(server, 4, concurrency=None, rate=1000.0).answers) == 4


def test_figures() -> None:
    answers = [
        Answer(asked=10.0, text_times=[10.5, 10.6, 10.9], ended=11.0, answer_tokens=5),
        Answer(asked=11.0, text_times=[11.25], ended=11.5, answer_tokens=1),
    ]
    figures = {figure.name: figure for figure in LoadResult("m", answers, started=9.5).figures()}
    assert figures["first token"].samples == [0.5, 0.25]
    assert figures["further token"].samples == [0.1]  # 0.4 s for four tokens
    assert figures["between chunks"].samples == pytest.approx([0.1, 0.3])
    assert figures["whole answer"].samples == [1.0, 0.5]
    assert figures["answers"].samples == [3.0] and figures["answers"].unit == "tok/s"
    assert LoadResult().figures() == []


def test_answers_of_one_token_have_no_gaps() -> None:
    figures = LoadResult("m", [Answer(asked=1.0, text_times=[1.5], ended=2.0)], started=1.0).figures()
    assert [figure.name for figure in figures] == ["first token", "whole answer", "answers"]


# ---- what ends everything


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://host", "http://", "http://user:word@host", "http://h/?key=1", "http://h:x",
     "http://h:-1", "http://h:65536", "http://h/#part"],
)  # fmt: skip
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(RequestError, match="URL"):
        Target(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/api/openai/v1", "https://host/api/openai/v1"),
    ],
)
def test_where_the_api_is(url: str, base: str) -> None:
    assert Target(url).base_url == base


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Target("http://host", api_key="secret"))


@pytest.mark.parametrize("key", ["secret\n", "secret\r", "se\0cret", "s\u00e9cret"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: str) -> None:
    with pytest.raises(RequestError) as caught:
        Target("http://host", api_key=key)
    assert "cret" not in str(caught.value)


def test_a_name_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(RequestError, match="not Unicode"):
        Target("http://host", model="\udcff")


@pytest.mark.parametrize(
    "wrong",
    [{"requests": 0}, {"max_tokens": 0}, {"concurrency": 0}, {"concurrency": None}, {"rate": 0.0}, {"timeout_s": 0.0},
     {"rate": math.nan}, {"rate": math.inf}, {"timeout_s": math.nan}, {"timeout_s": math.inf}],
)  # fmt: skip
def test_plans_that_are_none(wrong: dict[str, float | None]) -> None:
    with pytest.raises(RequestError):
        LoadPlan(**{"requests": 1, "prompt_tokens": 1, "max_tokens": 1, "concurrency": 1, **wrong})


def test_nobody_there(server: OddServer) -> None:
    server.http.server_close()
    with pytest.raises(NetworkError, match="does it run"):
        load(server)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (fails_with(404, b"not here"), "HTTP 404: not here; check the URL"),
        (fails_with(200, b"no JSON"), "give --model"),
        (fails_with(200, b'{"data": []}'), "give --model"),
        (fails_with(200, b"[]"), "give --model"),
        (fails_with(200, b'{"data": [{"id": null}]}'), "give --model"),
        (fails_with(200, b'{"data": [{"id": "\\ud800"}]}'), "give --model"),
        (fails_with(200, b'{"data": [{"id": "m", "x": ' + b"[" * NESTED), "give --model"),
    ],
)
def test_no_model_to_ask_for(
    server: OddServer, monkeypatch: pytest.MonkeyPatch, reply: Callable[[Asked], None], message: str
) -> None:
    monkeypatch.setattr(Asked, "do_GET", reply)
    with pytest.raises(NetworkError, match=message):
        load(server)


def test_a_list_of_models_that_does_not_come(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(asked: Asked) -> None:
        asked.begin_stream()
        with suppress(ConnectionError):
            while True:  # until who asked is gone
                asked.wfile.write(b" ")
                time.sleep(0.01)

    monkeypatch.setattr(Asked, "do_GET", trickle)
    with pytest.raises(NetworkError, match=r"does not say within 0\.2 s"):
        load(server, timeout_s=0.2)


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "foo://bar"), ("ALL_PROXY", "http://[::"), ("SSL_CERT_FILE", "/not/there")]
)
def test_an_environment_that_cannot_be_used(
    server: OddServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(NetworkError, match="look at HTTP_PROXY"):
        load(server)


def test_a_refused_first_request_ends_it(server: OddServer) -> None:
    server.reply = fails_with(401, json.dumps({"error": {"message": "no such key"}}).encode())
    with pytest.raises(NetworkError, match="HTTP 401: no such key; nothing was measured"):
        load(server, 5)
    assert len(server.asked) == 1
