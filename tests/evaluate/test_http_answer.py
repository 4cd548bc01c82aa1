"""Answers of servers: streams in all shapes, and what counts as an error."""

import time

import httpx2
import pytest

from deepzig.evaluate.http_answer import Answer, AnswerFailedError, EventParser, error_message, reason_of
from tests.evaluate.conftest import NESTED, load
from tests.odd_server import DONE, STOP, Asked, OddServer, Reply, event, fails_with, streaming, text, usage


def chat(**delta: str | None) -> bytes:
    return event({"choices": [{"delta": delta, "finish_reason": None}]})


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


def test_nothing_counts_after_the_end_of_an_answer(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.evaluate.http_answer.LINGER_S", 0.2)
    server.replies = [linger, break_off_after_done]
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


def hang_up(asked: Asked) -> None:
    asked.close_connection = True


def break_off(asked: Asked, *rest: bytes) -> None:
    """A stream of a stated length that ends before."""
    asked.send_response(200)
    asked.send_header("Content-Type", "text/event-stream")
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    asked.wfile.write(text(" a") + b"".join(rest))
    asked.close_connection = True


def break_off_after_done(asked: Asked) -> None:
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


def test_an_error_without_a_message_is_named() -> None:
    assert reason_of(httpx2.ReadError("")) == "ReadError" and reason_of(httpx2.ReadError("reset")) == "reset"


def test_an_answer_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(AnswerFailedError) as caught:
        Answer(asked=0.0).take(event({"error": {"message": "a\nb"}})[6:], 0.0)
    assert "\n" not in str(caught.value)
