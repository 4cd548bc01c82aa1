"""One streamed answer of an OpenAI-compatible server, and when its pieces came.

Called by `http_load`; calls httpx2. Streams are read leniently, since servers differ: usage may be missing or come in
every chunk, chunks may hold a role or nothing, comments keep connections alive, and not all end with [DONE].
"""

import asyncio
import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, Any

import httpx2
import msgspec

DONE = b"[DONE]"
LINE_END = re.compile(rb"\r\n|\r|\n")
MESSAGE_CHARS = 200  # of a server's error
MAX_ERROR_BYTES = 1 << 16
MAX_EVENT_BYTES = 1 << 24
LINGER_S = 1.0  # for the end of a stream after [DONE], so that its connection can be used again
NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what decoding it can end with

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]  # of tokens


class AnswerFailedError(Exception):
    """There is no whole answer. The message says why, in equal words for equal reasons, so that they can be counted."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # DeepSeek's name, and others'
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None  # of completions
    delta: _Delta | None = None  # of chats
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta or _Delta()
        return bool(self.text or delta.content or delta.reasoning_content or delta.reasoning)


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass
class Answer:
    """One answer. Times are those of perf_counter."""

    asked: float
    text_times: list[float] = field(default_factory=list)  # of chunks with text
    ended: float = 0.0  # [DONE], else the end of the stream
    prompt_tokens: int | None = None  # None: the server did not say
    answer_tokens: int | None = None
    is_finished: bool = False  # a chunk said why it ended, or the stream that it is done
    is_done: bool = False  # it said [DONE]; nothing after that counts

    @property
    def n_tokens(self) -> int:
        """Tokens as the server counts them, else chunks with text."""
        return len(self.text_times) if self.answer_tokens is None else self.answer_tokens

    def take(self, data: bytes, now: float) -> None:
        """Take an event of the stream. Raises AnswerFailedError if it is an error, or not part of OpenAI's API."""
        if self.is_done:
            return
        if data.strip() == DONE:
            self.is_finished = self.is_done = True
            self.ended = now
            return
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except NOT_JSON as error:
            raise AnswerFailedError(f"a chunk that cannot be read: {error}") from error
        if chunk.error is not None:
            raise AnswerFailedError(f"an error within the stream: {_message(chunk.error)}")
        for choice in chunk.choices or ():
            if choice.has_text:
                self.text_times.append(now)
            self.is_finished |= bool(choice.finish_reason)  # some say "" where there is no reason yet
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:  # the last one has the total
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.answer_tokens = chunk.usage.completion_tokens


class EventParser:
    """Server-sent events: bytes in, the data of each event out. Lines end as in HTML's standard, with CR, LF or both;
    JSON may contain other characters that Python counts as line ends."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._is_first_line = True
        self._ended_in_cr = False  # the last piece; a LF that follows belongs to it

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Add bytes, and return the events that became whole. Raises AnswerFailedError if a line has no end."""
        after_cr, self._ended_in_cr = self._ended_in_cr, piece.endswith(b"\r")
        first, *others = LINE_END.split(piece.removeprefix(b"\n") if after_cr else piece)
        self._rest += first
        if len(self._rest) > MAX_EVENT_BYTES:
            raise AnswerFailedError(f"a line of more than {MAX_EVENT_BYTES >> 20} MiB")
        if others:
            *lines, rest = others
            for line in (bytes(self._rest), *lines):
                yield from self._line(line)
            self._rest = bytearray(rest)

    def finish(self) -> Iterator[bytes]:
        """The last event, if the stream ended without the empty line after it."""
        yield from self._line(bytes(self._rest))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[bytes]:
        if self._is_first_line:
            line, self._is_first_line = line.removeprefix(codecs.BOM_UTF8), False
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data)
            self._data.clear()


async def ask(client: httpx2.AsyncClient, path: str, body: dict[str, Any], timeout_s: float) -> Answer:
    """Send a request and read its stream to the end.

    Raises:
        AnswerFailedError: no connection, a status other than 200, no stream, or one that ends too early.
    """
    answer = Answer(asked=perf_counter())
    try:
        async with asyncio.timeout(timeout_s) as limit, client.stream("POST", path, json=body) as response:
            await _check(response)
            await _read(response, answer, limit)
    except TimeoutError:
        if not answer.is_done:
            raise AnswerFailedError(f"no whole answer within {timeout_s:g} s") from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise AnswerFailedError(f"no connection: {reason_of(error)}") from error
    except httpx2.HTTPError as error:
        if not answer.is_done:
            raise AnswerFailedError(f"the connection broke off: {reason_of(error)}") from error
    answer.ended = answer.ended or perf_counter()
    if not answer.is_finished:
        raise AnswerFailedError("the stream ended before the answer")
    return answer


async def _check(response: httpx2.Response) -> None:
    if response.status_code != HTTPStatus.OK:
        content = b""
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_ERROR_BYTES:
                break
        raise AnswerFailedError(f"HTTP {response.status_code}: {error_message(content[:MAX_ERROR_BYTES])}")
    kind = response.headers.get("content-type", "")
    if not kind.lower().startswith("text/event-stream"):
        raise AnswerFailedError(f"not a stream of events but {kind[:MESSAGE_CHARS] or 'something without a type'}")


async def _read(response: httpx2.Response, answer: Answer, limit: asyncio.Timeout) -> None:
    parser = EventParser()
    async for piece in response.aiter_bytes():
        now = perf_counter()
        was_done = answer.is_done
        for data in parser.feed(piece):
            answer.take(data, now)
        if answer.is_done and not was_done:
            limit.reschedule(asyncio.get_running_loop().time() + LINGER_S)
    for data in parser.finish():
        answer.take(data, perf_counter())


def reason_of(error: httpx2.HTTPError) -> str:
    """Some have no message."""
    return str(error) or type(error).__name__


def error_message(content: bytes) -> str:
    """The message in the body of a failed request, as in OpenAI's API; else the body itself, cut."""
    try:
        return _message(msgspec.json.decode(content))
    except NOT_JSON:
        return " ".join(content.decode(errors="replace").split())[:MESSAGE_CHARS] or "no reason given"


def _message(error: Any) -> str:
    """The innermost `message`, `detail` or `error` of an object, in one line."""
    while isinstance(error, dict):
        inner = next((error[key] for key in ("error", "message", "detail") if error.get(key)), None)
        if inner is None:
            break
        error = inner
    return " ".join(str(error).split())[:MESSAGE_CHARS]
