"""Load for a server: streams in all shapes, what counts as an error, and how requests are spread over time."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx2
import pytest

from deepzig.errors import NetworkError, RequestError
from deepzig.evaluate.http_answer import Answer, AnswerFailedError, EventParser, error_message, reason_of
from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target, run
from tests.odd_server import DONE, Asked, OddServer, Reply, event, odd_server, text, usage


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server() as running:
        yield running


def load(server: OddServer, requests: int = 1, **plan: float | None) -> LoadResult:
    result = LoadResult()
    given = {"prompt_tokens": 10, "max_tokens": 3, "concurrency": 1, "timeout_s": 20.0, **plan}
    run(Target(server.url), LoadPlan(requests, **given), result, lambda: None)  # type: ignore[arg-type]
    return result


def streaming(*pieces: bytes) -> Reply:
    return lambda asked: asked.stream(*pieces)


def chat(**delta: str | None) -> bytes:
    return event({"choices": [{"delta": delta, "finish_reason": None}]})


STOP = text("", "stop")
NESTED = 100_000  # brackets, deeper than any stack


# ---- events


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: 1\n\ndata:2\n\n", [b"1", b"2"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\n", [b"1", b"2", b"3"]),
        (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n", [b"1"]),  # the mark of UTF-8, which only the start may have
        (b": keep-alive\n\n\n\nevent: x\nid: 4\ndata: 1\n\n: again\ndata: 2\n: within\n\n", [b"1", b"2"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b"data: 1\n\ndata: 2", [b"1", b"2"]),
        ("data: a\u2028b\x85c\n\n".encode(), ["a\u2028b\x85c".encode()]),
        (b"", []),
    ],
)
def test_events_whatever_the_pieces(size: int, stream: bytes, events: list[bytes]) -> None:
    parser = EventParser()
    found = [data for i in range(0, len(stream), size) for data in parser.feed(stream[i : i + size])]
    assert found + list(parser.finish()) == events


# ---- answers


@pytest.mark.parametrize(
    ("pieces", "n_chunks", "n_tokens"),
    [
        ([text(" a"), text(" b c", "stop"), usage(12, 3), DONE], 2, 3),
        ([text(" a"), text(" b", "length")], 2, 2),  # no usage, no [DONE]
        ([text(" a"), text(" b"), DONE], 2, 2),  # no reason for the end
        ([chat(role="assistant", content=""), chat(content=" a"), chat(content=None), STOP, DONE], 1, 1),
        ([chat(reasoning_content="hm"), chat(reasoning="hm"), chat(content="b"), STOP], 3, 3),
        ([b": keep-alive\n\n", text(" a"), b": keep-alive\n\n", STOP, DONE], 1, 1),
        ([event({"choices": [{"text": " a"}], "usage": {"prompt_tokens": 12, "completion_tokens": 1}}),
          event({"choices": [{"text": " b"}], "usage": {"prompt_tokens": 12, "completion_tokens": 2}}), STOP], 2, 2),
        ([event({"choices": [], "prompt_progress": {"done": 3}}), text(" a"), event({"usage": {}}), STOP, DONE], 1, 1),
        ([event({"choices": None, "error": None}), text("\u2028"), DONE], 1, 1),
        ([text(" a") + text(" b", "stop") + DONE], 2, 2),  # all at once
    ],
)  # fmt: skip
def test_streams_of_other_servers(server: OddServer, pieces: list[bytes], n_chunks: int, n_tokens: int) -> None:
    server.replies = [streaming(*pieces)]
    result = load(server)
    (answer,) = result.answers
    assert len(answer.text_times) == n_chunks and answer.n_tokens == n_tokens
    assert answer.asked < answer.text_times[0] <= answer.text_times[-1] <= answer.ended
    assert not result.errors


def test_an_event_that_ends_in_cr_is_not_held_back() -> None:
    assert list(EventParser().feed(b"data: 1\r\r")) == [b"1"]


def test_a_long_line_is_not_read_again_for_each_piece() -> None:
    """15 MB in pieces of 4 KB; to look through all that is there each time takes minutes."""
    parser, piece = EventParser(), b"x" * 4096
    started = time.monotonic()
    pieces = [b"data: ", *[piece] * 3700, b"\n\n"]
    found = [data for each in pieces for data in parser.feed(each)]
    assert list(map(len, found)) == [3700 * 4096]
    assert time.monotonic() - started < 5


def test_types_of_media_are_alike_in_any_case(server: OddServer) -> None:
    server.replies = [lambda asked: asked.send(200, text(" a", "stop"), "Text/Event-Stream; Charset=UTF-8")]
    assert load(server).answers


def linger(asked: Asked) -> None:
    """A stream that is done, and goes on."""
    asked.stream(text(" a", "stop"), DONE, text(" b"))
    asked.rfile.read(1)  # until who asked is gone


def test_nothing_counts_behind_the_end_of_an_answer(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.evaluate.http_answer.LINGER_S", 0.2)
    server.replies = [linger, break_off_behind_done]
    result = load(server, 2)
    assert not result.errors and [answer.n_tokens for answer in result.answers] == [1, 1]
    assert all(answer.text_times[-1] <= answer.ended < answer.text_times[-1] + 0.2 for answer in result.answers)


def test_a_done_answer_leaves_its_connection_for_the_next(server: OddServer) -> None:
    connections = set()

    def reply(asked: Asked) -> None:
        connections.add(asked.client_address)
        asked.send(200, text(" a", "stop") + DONE, "text/event-stream")

    server.reply = reply
    assert len(load(server, 3).answers) == 3 and len(connections) == 1


@pytest.mark.parametrize("status", [200, 500])
def test_what_has_no_end_is_not_read_to_it(server: OddServer, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr("deepzig.evaluate.http_answer.MAX_EVENT_BYTES", 1 << 16)

    def reply(asked: Asked) -> None:
        asked.begin_stream(status)
        while True:  # until who asked is gone
            asked.wfile.write(b"x" * 4096)

    server.replies = [reply]
    ((reason, _),) = load(server).errors.items()
    assert reason.startswith("HTTP 500: xxx" if status == 500 else "a line of more than")


def fails_with(status: int, content: bytes) -> Reply:
    return lambda asked: asked.send(status, content)


def hang_up(asked: Asked) -> None:
    asked.close_connection = True


def break_off(asked: Asked, *behind: bytes) -> None:
    """A stream of a stated length that ends before."""
    asked.send_response(200)
    asked.send_header("Content-Type", "text/event-stream")
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    asked.wfile.write(text(" a") + b"".join(behind))
    asked.close_connection = True


def break_off_behind_done(asked: Asked) -> None:
    break_off(asked, STOP, DONE)


def dawdle(asked: Asked) -> None:
    asked.stream(text(" a"))
    asked.rfile.read(1)  # until who asked is gone


FAILURES: list[tuple[Reply, str]] = [
    (fails_with(429, b'{"error": {"message": "too  many\\nrequests"}}'), "HTTP 429: too many requests"),
    (fails_with(500, b"<html>broken</html>"), "HTTP 500: <html>broken</html>"),
    (fails_with(307, b""), "HTTP 307: no reason given"),
    (fails_with(200, b'{"choices": []}'), "not a stream of events but application/json"),
    (hang_up, "the connection broke off: "),
    (break_off, "the connection broke off: "),
    (streaming(text(" a")), "the stream ended before the answer"),
    (streaming(text(" a", "")), "the stream ended before the answer"),
    (streaming(STOP, DONE), "an answer without text"),
    (streaming(text(" a"), event({"error": {"message": "no memory"}})), "an error within the stream: no memory"),
    (streaming(b"data: {]\n\n"), "a chunk that cannot be read: "),
    (streaming(event({"choices": [{"text": 5}]})), "a chunk that cannot be read: "),
    (streaming(b'data: {"choices": [{"text": "\xff"}]}\n\n'), "a chunk that cannot be read: "),
    (streaming(b'data: {"error": ' + b"[" * NESTED + b"]" * NESTED + b"}\n\n"), "a chunk that cannot be read: "),
    (streaming(text(" a"), usage(1, 10**400), STOP), "a chunk that cannot be read: "),
    (streaming(text(" a"), usage(1, -1), STOP), "a chunk that cannot be read: "),
    (fails_with(500, b"[" * NESTED), "HTTP 500: [[["),
    (dawdle, "no whole answer within 1 s"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "reason"), FAILURES)
def test_failures_are_counted_beside_answers(server: OddServer, reply: Reply, reason: str) -> None:
    server.replies = [reply, server.reply, reply]
    result = load(server, 3, timeout_s=1.0 if reply is dawdle else 20.0)
    ((found, count),) = result.errors.items()
    assert found.startswith(reason) and count == 2
    assert len(result.answers) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error": {"message": "m", "type": "t"}}', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"detail": [{"loc": "x"}]}', "[{'loc': 'x'}]"),
        (b'{"message": {}}', "{'message': {}}"),
        (b"\xff" * 500, "\N{REPLACEMENT CHARACTER}" * 200),
        (b" ", "no reason given"),
    ],
)
def test_messages_of_errors(content: bytes, message: str) -> None:
    assert error_message(content) == message


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


def test_an_error_without_a_message_is_named() -> None:
    assert reason_of(httpx2.ReadError("")) == "ReadError" and reason_of(httpx2.ReadError("reset")) == "reset"


def test_a_refused_first_request_ends_it(server: OddServer) -> None:
    server.reply = fails_with(401, json.dumps({"error": {"message": "no such key"}}).encode())
    with pytest.raises(NetworkError, match="HTTP 401: no such key; nothing was measured"):
        load(server, 5)
    assert len(server.asked) == 1


def test_an_answer_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(AnswerFailedError) as caught:
        Answer(asked=0.0).take(event({"error": {"message": "a\nb"}})[6:], 0.0)
    assert "\n" not in str(caught.value)

