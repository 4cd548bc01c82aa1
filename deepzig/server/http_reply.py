"""Sends an answer over HTTP, streamed or whole; gives up at once when the client is gone or does not read.

Made by the endpoints as Starlette responses. Both kinds watch the connection while the engine computes.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.types import Receive, Scope, Send

from deepzig.engine.llm import LLM
from deepzig.server import sse
from deepzig.server.answer import Answer
from deepzig.server.failures import as_api_error
from deepzig.server.run import Ask, Run, RunRegistry

FIRST_SIGN_S = 0.9  # a waiting client hears of us within its first second
PADDING_AFTER_S = 10.0  # a whole reply begins with spaces when it takes longer than that
PROGRESS_INTERVAL_S = 0.25


class ClientGoneError(Exception):
    """The client has closed the connection, or does not read what it gets."""


class ReportedError(Exception):
    """A request failed, and its client has been told."""


class Reply:
    """An ASGI response that runs the engine. Headers go out with the first thing there is to send."""

    def __init__(
        self, llm: LLM, runs: RunRegistry, ask: Ask, answer: Answer, *, send_timeout: float, ping_interval: float
    ) -> None:
        self._llm, self._runs, self._ask, self._answer = llm, runs, ask, answer
        self._send_timeout, self._ping_interval = send_timeout, ping_interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit, send, and leave nothing running, however it ends."""
        serving = asyncio.ensure_future(self._serve(_Sender(scope, send, self._send_timeout)))
        watching = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, serving):
                if not task.done():
                    task.cancel()
            outcomes = await asyncio.gather(serving, watching, return_exceptions=True)
        failure = outcomes[0]
        if isinstance(failure, Exception) and not isinstance(failure, ClientGoneError | ReportedError):
            raise failure

    async def _serve(self, sender: "_Sender") -> None:
        async with self._runs.running(self._llm, self._ask, self._answer, ClientGoneError) as run:
            await self._send(run, sender)

    async def _send(self, run: Run, sender: "_Sender") -> None:
        raise NotImplementedError


class StreamedReply(Reply):
    """Server-sent events. An error after the beginning is an event too."""

    async def _send(self, run: Run, sender: "_Sender") -> None:
        answer = self._answer
        sender.headers = sse.HEADERS
        try:
            async for content in self._beginning(run):
                await sender.send(content)
            async for content in self._contents(run):
                await sender.send(content)
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            await sender.send(sse.event(answer.failure(as_api_error(error))) + sse.DONE, is_last=True)
            raise ReportedError from error
        await sender.send(sse.events(answer.finish()) + sse.DONE, is_last=True)

    async def _beginning(self, run: Run) -> AsyncIterator[bytes]:
        """What a stream begins with, and comments before it where that takes long."""
        wait = FIRST_SIGN_S
        while not await run.is_ready(wait):
            yield sse.KEEP_ALIVE
            wait = self._ping_interval
        yield sse.events(self._answer.start())

    async def _contents(self, run: Run) -> AsyncIterator[bytes]:
        """What goes out, as it comes: events, and comments while nothing does."""
        answer = self._answer
        loop = asyncio.get_running_loop()
        last_sent = loop.time()
        shown = None
        wait = FIRST_SIGN_S
        while not run.is_finished:
            reports = answer.wants_progress and not run.has_begun
            if reports and (progress := run.progress) != shown:
                shown, last_sent = progress, loop.time()
                yield sse.event(answer.progress(progress, run.elapsed_s))
            chunks = await run.next(min(wait, PROGRESS_INTERVAL_S) if reports else wait)
            content = b"".join(sse.events(answer.take(prompt, chunk)) for prompt, chunk in chunks)
            if not content and loop.time() - last_sent >= wait - 0.05:
                content = sse.KEEP_ALIVE
            if content:
                last_sent, wait = loop.time(), self._ping_interval
                yield content


class WholeReply(Reply):
    """One JSON object. When it takes long, spaces before it keep the connection alive; the status is 200 by then.

    An error after them is sent and the connection cut: clients look at the status alone, but not at half a reply.
    """

    async def _send(self, run: Run, sender: "_Sender") -> None:
        sender.headers = [(b"content-type", b"application/json")]
        loop = asyncio.get_running_loop()
        next_sign = loop.time() + (PADDING_AFTER_S if sender.can_break_off else math.inf)
        try:
            while not run.is_finished:
                for prompt, chunk in await run.next(max(next_sign - loop.time(), 0.01)):
                    self._answer.take(prompt, chunk)
                if loop.time() >= next_sign:
                    await sender.send(b" ")
                    next_sign = loop.time() + self._ping_interval
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            if not sender.has_begun:
                raise
            await sender.break_off(msgspec.json.encode(as_api_error(error).body))
            raise ReportedError from error
        await sender.send(msgspec.json.encode(self._answer.whole()), is_last=True)


class _Sender:
    """Sends pieces of a body; a client that leaves one unread for too long counts as gone."""

    def __init__(self, scope: Scope, send: Send, timeout: float) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_begun = False
        self.can_break_off = scope["http_version"] != "1.0"  # there a body ends where the connection does
        self._send = send
        self._timeout = timeout
        self._abort: Callable[[], None] | None = scope.get("state", {}).get("abort")

    async def send(self, content: bytes, *, is_last: bool = False) -> None:
        """Raises ClientGoneError when the client does not take it in time; its connection is closed then."""
        try:
            async with asyncio.timeout(self._timeout):
                if not self.has_begun:
                    self.has_begun = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": self.headers})
                await self._send({"type": "http.response.body", "body": content, "more_body": not is_last})
        except TimeoutError:
            self._cut()
            raise ClientGoneError from None

    async def break_off(self, content: bytes) -> None:
        """Send the last words and close the connection before the body's end. Raises as `send`."""
        await self.send(content)
        self._cut()

    def _cut(self) -> None:
        if self._abort is not None:
            self._abort()


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
