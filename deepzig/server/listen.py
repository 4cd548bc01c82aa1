"""Listens: uvicorn with limits of its own on connections, slow senders and shutdown. Called by `cli.serve`.

What uvicorn lacks: a deadline for a request to arrive, a cap on connections with an answer in JSON, a way for a reply
to cut a connection, and a second signal that ends at once.
"""

import asyncio
import logging
import socket
from types import FrameType
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from deepzig.server.app import make_app
from deepzig.server.failures import ApiError
from deepzig.server.guard import MAX_HEADER_BYTES
from deepzig.server.service import Service

log = logging.getLogger("deepzig.server")

MAX_MESSAGE_BYTES = 8 << 20  # of a WebSocket
BACKLOG = 2048  # connections that wait to be accepted
UNREAD_BYTES = 256 << 10  # of a stream that may wait in the system for a client that reads slowly
IDLE_S = 75  # a kept connection; longer than clients keep theirs, so that they close first
ABORT_GRACE_S = 2.0  # for the last words of requests that the shutdown has cut


class Server(uvicorn.Server):
    """Ends gracefully at the first signal, at once at the second."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.service = service
        config = uvicorn.Config(
            make_app(service),
            host=settings.host,
            port=settings.port,
            http=_protocol(service),
            ws=_WebSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,  # a small message may unpack to a large one
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=int(settings.shutdown_timeout + ABORT_GRACE_S + 1),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. Unlike uvicorn's, it is not raised again at the end: a clean shutdown exits with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def stop(self) -> None:
        """End gracefully; may be called from any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end for a while, then cut them, each with an error that says so."""
        self.service.is_draining = True
        cut = asyncio.get_running_loop().call_later(self.service.settings.shutdown_timeout, self.service.cut)
        hurry = asyncio.ensure_future(self._close_when_forced())
        await super().shutdown(sockets)
        cut.cancel()
        hurry.cancel()
        self.service.cut()
        self.service.close()

    async def _close_when_forced(self) -> None:
        while not self.force_exit:
            await asyncio.sleep(0.05)
        self.service.cut()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small writes at once (TCP_NODELAY) only on sockets that say TCP: 40 ms a reply otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _protocol(service: Service) -> type[H11Protocol]:
    """uvicorn makes the protocols itself, so the service comes as an attribute of the class."""
    return type("ServiceProtocol", (_Http,), {"service": service})


class _Http(H11Protocol):
    """One connection."""

    service: Service

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        if len(self.connections) > self.service.settings.max_connections:
            self._refuse(ApiError(503, "there are too many connections", code="overloaded", retry_after=5))
            return
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._is_answering:
            self._start_deadline()  # the first bytes of a further request
        super().data_received(data)
        if self._is_answering or self.transport.is_closing():
            self._stop_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_deadline()  # what follows is no request; the route has a deadline for the key
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """uvicorn answers malformed HTTP; ours is JSON."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    @property
    def _is_answering(self) -> bool:
        """The headers of a request are there; its body is the endpoint's to wait for."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.service.settings.receive_timeout, self._on_deadline)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if not self._is_answering and not self.transport.is_closing():
            self._refuse(ApiError(408, "the request did not come in time", code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """An error without a request that it could belong to; the connection is closed."""
        self._stop_deadline()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = msgspec.json.encode(error.body)
            fields = {
                "content-type": "application/json",
                "content-length": str(len(content)),
                "connection": "close",
                **error.headers,
            }
            head = f"HTTP/1.1 {error.status} {error.status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
            self.transport.write(head.encode() + b"\r\n" + content)
        self.transport.close()


class _WebSocket(WebSocketsSansIOProtocol):
    """One WebSocket. A shutdown lets it end its answer: the route closes it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": self.transport.abort}

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # refused; uvicorn takes it for unanswered, and logs an error

    def shutdown(self) -> None:
        empty: Any = {"type": "websocket.receive"}  # neither text nor bytes, as from no client
        self.queue.put_nowait(empty)
