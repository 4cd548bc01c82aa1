"""Guard: the middleware of the server. It checks Host, Origin, key and kind of body, and gives every reply its headers.

Wraps the routes as an ASGI application. The one place that turns exceptions into error bodies.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepzig.server.failures import ApiError, as_api_error, shutting_down
from deepzig.server.metrics import Metrics
from deepzig.server.settings import ServerSettings, is_loopback_host

log = logging.getLogger("deepzig.server")

MAX_HEADER_BYTES = 32 << 10
PUBLIC = frozenset(("/", "/health", "/livez"))  # and the page's files under /static/
WEBSOCKET = "/v1/ws"  # a browser cannot send a key with the handshake: it comes in the first message
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_HEADER_NAMES = re.compile(r"[\w, -]+", re.ASCII)
_CODES = {404: "not_found", 405: "method_not_allowed"}


class Guard:
    """Denies by default: only what is listed as public answers without a key."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key_digests = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["path"] = scope["path"].removesuffix("/") or "/"  # no redirect: behind a proxy with TLS it names http
        scope["app"] = self  # lets Starlette's routes raise for what they do not have
        reply = _GuardedSend(scope, send, self._settings)
        started = time.perf_counter()
        try:
            self._check(scope)
            if scope["type"] == "http" and scope["method"] == "OPTIONS" and reply.origin is not None:
                await reply.preflight()
            else:
                await self._app(scope, receive, reply)
        except HTTPException as error:
            code = _CODES.get(error.status_code)
            await reply.fail(ApiError(error.status_code, error.detail, code=code), dict(error.headers or {}))
        except asyncio.CancelledError:
            if reply.status:
                raise
            await reply.fail(shutting_down(), {})  # nothing else cancels a request
        except Exception as error:
            await reply.fail(as_api_error(error), {})
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.http_requests.labels(route, str(reply.status)).inc()
            path = scope["path"].encode("unicode_escape").decode()
            milliseconds = 1000 * (time.perf_counter() - started)
            log.info("%s %.200s %d %.0f ms %s", scope.get("method", "WS"), path, reply.status, milliseconds, reply.id)

    def key_index(self, key: str) -> int | None:
        """Which of the keys this is; takes the same time whichever, if any."""
        digest = _digest(key)
        found = None
        for index, known in enumerate(self._key_digests):
            if hmac.compare_digest(known, digest):
                found = index
        return found

    def _check(self, scope: Scope) -> None:
        """Raises ApiError if the request may not pass; says in scope["state"] whose it is."""
        _check_size(scope)
        headers = Headers(scope=scope)
        self._check_host(headers.get("host"))
        self._check_origin(headers.get("origin"), headers.get("host", ""))
        state = scope.setdefault("state", {})
        state["tenant"], state["is_authorized"] = "", True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_public = path in PUBLIC or path.startswith("/static/")
        is_preflight = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if self._key_digests and not is_public and not is_preflight:
            key = _key_of(headers)
            index = self.key_index(key) if key is not None else None
            state["is_authorized"] = index is not None
            state["tenant"] = f"key {index}"
            if index is None and not (scope["type"] == "websocket" and path == WEBSOCKET and key is None):
                what = "this server needs an API key" if key is None else "the API key is wrong"
                raise ApiError(401, f"{what}; send it as `Authorization: Bearer KEY`", code="invalid_api_key")
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH"):
            _check_body_kind(headers)

    def _check_host(self, host: str | None) -> None:
        """A page whose name was made to point here (DNS rebinding) sends its own name."""
        if host is None:
            raise ApiError(400, "the request has no Host header", code="invalid_host")
        name = _host_name(host)
        settings = self._settings
        if name in settings.allowed_hosts or is_loopback_host(name) or name == settings.host.lower():
            return
        if settings.is_loopback or settings.allowed_hosts:
            raise ApiError(403, "the Host header names another server; see --allowed-host", code="invalid_host")

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Pages from elsewhere may not call, unless the operator said so."""
        if origin is None or origin in self._settings.allowed_origins:
            return
        if origin.partition("://")[2] != host:
            raise ApiError(403, "pages from this origin may not call; --cors-origin admits one", code="invalid_origin")


class _GuardedSend:
    """Passes a reply on with the headers that all have, and remembers how far it got."""

    def __init__(self, scope: Scope, send: Send, settings: ServerSettings) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        self.status = 0  # until the reply has begun
        origin = headers.get("origin")
        self.origin = origin if origin in settings.allowed_origins else None
        self._wanted_headers = headers.get("access-control-request-headers", "")
        self._is_websocket = scope["type"] == "websocket"
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers()]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)

    async def fail(self, error: ApiError, headers: dict[str, str]) -> None:
        """The error as a reply, if none has begun."""
        if self.status:
            return
        content = msgspec.json.encode(error.body)
        kind = "websocket.http.response" if self._is_websocket else "http.response"
        fields = {"content-type": "application/json", "content-length": str(len(content)), **error.headers, **headers}
        if error.status in (408, 413):
            fields["connection"] = "close"  # the rest of the body is not wanted
        listed = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
        await self({"type": f"{kind}.start", "status": error.status, "headers": listed})
        await self._send({"type": f"{kind}.body", "body": content})

    async def preflight(self) -> None:
        """The answer to a browser that asks before it calls from an admitted origin."""
        wanted = self._wanted_headers  # clients send some of their own, as OpenAI's x-stainless-*
        allowed = wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type, x-api-key, x-request-id"
        fields = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", allowed.encode()),
            (b"access-control-max-age", b"600"),
            (b"vary", b"access-control-request-headers"),
        ]
        await self({"type": "http.response.start", "status": 204, "headers": fields})
        await self._send({"type": "http.response.body", "body": b""})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]
        if self.origin is not None:
            exposed = b"x-request-id, retry-after, x-should-retry"
            headers += [(b"access-control-allow-origin", self.origin.encode()), (b"vary", b"origin")]
            headers.append((b"access-control-expose-headers", exposed))
        return headers


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _check_size(scope: Scope) -> None:
    """uvicorn bounds only headers that come in pieces."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        message = f"the headers are larger than {MAX_HEADER_BYTES >> 10} KiB; shorten them"
        raise ApiError(431, message, code="headers_too_large")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty if that is malformed."""
    if not re.fullmatch(r"[\w.:\[\]-]+", host):
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets without an IPv6 address
        return ""


def _key_of(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _check_body_kind(headers: Headers) -> None:
    """JSON only: a form or plain text can be sent by any web page without asking."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON: `Content-Type: application/json`", code="unsupported_media_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted", code="unsupported_content_encoding")
