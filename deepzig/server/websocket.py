"""/v1/ws: chats over a WebSocket; docs/websocket.md is its description. Called by `app`.

Each message of the client is a chat-completions body, or a command. Frames of an answer are the chunks of a stream.
"""

import asyncio
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket, WebSocketDisconnect

from deepzig.server.body import decode
from deepzig.server.chat import prepare_chat
from deepzig.server.failures import ApiError, ErrorBody, as_api_error, shutting_down
from deepzig.server.guard import Guard
from deepzig.server.http_reply import PROGRESS_INTERVAL_S
from deepzig.server.requests import ChatRequest
from deepzig.server.run import Run
from deepzig.server.service import Service
from deepzig.server.tenant import tenant_of

AUTH_TIMEOUT_S = 10.0
MAX_AUTH_CHARS = 4096  # of the message with the key: nobody knows yet who sends it
NOT_AUTHORIZED, GOING_AWAY = 1008, 1012  # close codes


class Command(Struct):
    """A message with a type; without one it is a chat."""

    type: Literal["auth", "cancel", "chat"] = "chat"
    token: str | None = None


class Notice(Struct):
    """A frame that is no chunk."""

    type: Literal["ready", "done", "cancelled"]


class ShutdownError(Exception):
    """The server shuts down."""


async def chat_socket(socket: WebSocket, service: Service) -> None:
    """Serve one connection until it is closed."""
    await socket.accept()
    connection = _Connection(socket, service)
    try:
        await connection.serve()
    except WebSocketDisconnect:
        return
    finally:
        await connection.end()


class _Connection:
    """One answer at a time, while commands are read."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self._answering: asyncio.Task[None] | None = None
        self._is_reported = False  # how the answer ended

    async def serve(self) -> None:
        """Serve until the client leaves or the server shuts down. Raises WebSocketDisconnect for the former."""
        try:
            if await self._is_admitted():
                await self._converse()
        except ShutdownError:
            await self._finish()

    async def _is_admitted(self) -> bool:
        """Ask for a key if one is needed and has not come with the handshake."""
        if not self._socket.state.is_authorized:
            index = await self._key_index()
            if index is None:
                message = 'the first message must be {"type": "auth", "token": KEY}'
                await self._send(ApiError(401, message, code="invalid_api_key").body)
                await self._socket.close(NOT_AUTHORIZED)
                return False
            self._socket.state.tenant = f"key {index}"
        await self._send(Notice("ready"))
        return True

    async def _key_index(self) -> int | None:
        """Which of the keys the first message has; None if that has none, or none came in time."""
        guard = self._socket.scope["app"]
        assert isinstance(guard, Guard)
        try:
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                text = await self._text()
            if text is None or len(text) > MAX_AUTH_CHARS:
                return None
            command = decode(text, Command)
        except (TimeoutError, ApiError):
            return None
        return guard.key_index(command.token or "") if command.type == "auth" else None

    async def _converse(self) -> None:
        """Read messages."""
        while True:
            command = await self._command()
            if command is None:
                continue
            kind, text = command[0].type, command[1]
            is_busy = self._answering is not None and not self._answering.done()
            if kind == "cancel" and is_busy:
                await self._cancel()
            elif kind == "chat" and is_busy:
                await self._send(ApiError(409, "an answer is under way; cancel it or wait", code="busy").body)
            elif kind == "chat":
                self._is_reported = False
                self._answering = asyncio.create_task(self._answer(text))

    async def end(self) -> None:
        """Leave nothing running."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    async def _cancel(self) -> None:
        """End the answer and say so, unless its own end was faster. Not in its task: that may not have begun yet."""
        await self.end()
        if not self._is_reported:
            await self._send(Notice("cancelled"))

    async def _finish(self) -> None:
        """The server shuts down: the answer may end, as long as the server lets it."""
        try:
            if self._answering is not None:
                await asyncio.gather(self._answering, return_exceptions=True)
        except asyncio.CancelledError:  # of both tasks: it was still being prepared
            await self._send(shutting_down().body)
        await self._socket.close(GOING_AWAY)

    async def _command(self) -> tuple[Command, str] | None:
        """The next message, parsed and as it came; None after one that is no JSON object, which is reported."""
        text = await self._text()
        try:
            if text is None:
                raise ApiError(400, "messages must be text", code="invalid_json")
            return decode(text, Command), text
        except ApiError as error:
            await self._send(error.body)
            return None

    async def _text(self) -> str | None:
        """The next message as it came; None if it is not text. Raises WebSocketDisconnect and ShutdownError."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if message.get("text") is None and message.get("bytes") is None:  # from `listen`
            raise ShutdownError
        text: str | None = message.get("text")
        return text

    async def _answer(self, text: str) -> None:
        try:
            await self._stream(text)
        except WebSocketDisconnect:
            return
        except Exception as error:
            await self._send(as_api_error(error).body)
        self._is_reported = True  # no await since the last frame, so no cancel comes between

    async def _stream(self, text: str) -> None:
        service = self._service
        request = decode(text, ChatRequest)
        model = service.model_named(request.model)
        tenant = tenant_of(self._socket.state.tenant, request.cache_salt)
        ask, answer = await asyncio.to_thread(prepare_chat, model, request, tenant)
        async with service.runs.running(model.llm, ask, answer, WebSocketDisconnect) as run:
            await self._send(*answer.start())
            shown = None
            while not run.is_finished:
                if answer.wants_progress and not run.has_begun and (progress := run.progress) != shown:
                    shown = progress
                    await self._send(answer.progress(progress, run.elapsed_s))
                for prompt, chunk in await run.next(self._patience(answer.wants_progress, run)):
                    await self._send(*answer.take(prompt, chunk))
            await self._send(*answer.finish(), Notice("done"))

    def _patience(self, wants_progress: bool, run: Run) -> float:
        return PROGRESS_INTERVAL_S if wants_progress and not run.has_begun else self._service.settings.ping_interval

    async def _send(self, *items: Struct | ErrorBody) -> None:
        """Raises WebSocketDisconnect if the client is gone, or does not read what it gets."""
        try:
            async with asyncio.timeout(self._service.settings.send_timeout):
                for item in items:
                    await self._socket.send_text(msgspec.json.encode(item).decode())
        except TimeoutError:
            abort = self._socket.scope["state"].get("abort")
            if abort is not None:
                abort()
            raise WebSocketDisconnect from None
