"""The routes of the server, behind its guard. Made by `listen`, and by tests; calls one module per endpoint."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from deepzig.server.answer import Answer
from deepzig.server.body import decode, read_body
from deepzig.server.chat import prepare_chat
from deepzig.server.completions import prepare_completion
from deepzig.server.failures import ApiError
from deepzig.server.guard import WEBSOCKET, Guard
from deepzig.server.http_reply import Reply, StreamedReply, WholeReply
from deepzig.server.metrics import CONTENT_TYPE
from deepzig.server.openapi import description
from deepzig.server.replies import Health, ModelList
from deepzig.server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)
from deepzig.server.responses import prepare_response
from deepzig.server.responses_protocol import ResponsesRequest
from deepzig.server.run import Ask
from deepzig.server.served_model import ServedModel
from deepzig.server.service import Service
from deepzig.server.status import Status
from deepzig.server.tenant import tenant_of
from deepzig.server.tokens import apply_template, detokenize, tokenize
from deepzig.server.websocket import chat_socket

STATIC = Path(__file__).parent / "static"
# What the page may do: load its own files, talk to this server, and nothing else.
CSP = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "font-src 'self'",
    "connect-src 'self'", "manifest-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
# Part of a path of OpenAI's API -> why it is not here.
_ABSENT = {"/embeddings": "this server makes no embeddings", "/responses/": "responses are not stored"}

T = TypeVar("T")
Generates = TypeVar("Generates", ChatRequest, CompletionRequest, ResponsesRequest)
Prepare = Callable[[ServedModel, Generates, str], tuple[Ask, Answer]]
Endpoint = Callable[[Request], Awaitable[Response | Reply]]


def make_app(service: Service) -> Guard:
    """The ASGI application of a server."""
    router = Router(Routes(service).listed(), redirect_slashes=False, default=_no_route)
    return Guard(router, service.settings, service.metrics)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Raises ApiError 404 that says what is not there."""
    hint = next((hint for part, hint in _ABSENT.items() if part in scope["path"]), "/openapi.json lists what does")
    message = f"nothing answers {scope.get('method', 'WebSocket')} {scope['path']!r:.200}; {hint}"
    raise ApiError(404, message, code="not_found")


class Routes:
    """The endpoints, with the service that they share."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._status = Status(service)
        self._description = msgspec.json.encode(description(version("deepzig"), bool(service.settings.api_keys)))

    def listed(self) -> list[BaseRoute]:
        """All routes; a name without /v1 is an alias, for clients that are given such a base."""
        routes: list[BaseRoute] = []
        chat = self._generating(ChatRequest, prepare_chat)
        completion = self._generating(CompletionRequest, prepare_completion)
        response = self._generating(ResponsesRequest, prepare_response)
        for prefix in ("/v1", ""):
            routes += [
                Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
                Route(f"{prefix}/completions", completion, methods=["POST"]),
                Route(f"{prefix}/responses", response, methods=["POST"]),
                Route(f"{prefix}/models", self.models),
                Route(f"{prefix}/models/{{id:path}}", self.model),
            ]
        return [
            *routes,
            Route("/tokenize", self._answering(TokenizeRequest, tokenize), methods=["POST"]),
            Route("/apply-template", self._answering(TemplateRequest, apply_template), methods=["POST"]),
            Route("/detokenize", self._answering(DetokenizeRequest, detokenize), methods=["POST"]),
            WebSocketRoute(WEBSOCKET, self.websocket),
            Route("/openapi.json", self.openapi),
            Route("/health", self.health),
            Route("/livez", self.livez),
            Route("/metrics", self.metrics),
            Route("/status", self.status),
            Route("/", self.page),
            Mount("/static", PageFiles(directory=STATIC, check_dir=False)),
        ]

    def _answering(self, kind: type[T], answer: Callable[[ServedModel, T], msgspec.Struct]) -> Endpoint:
        """The endpoint that reads a body of `kind` and answers without the engine."""

        async def endpoint(request: Request) -> Response:
            settings = self.service.settings
            body = decode(await read_body(request, settings.max_body_bytes, settings.receive_timeout), kind)
            return json_response(await asyncio.to_thread(answer, self.service.model, body))

        return endpoint

    def _generating(self, kind: type[Generates], prepare: Prepare[Generates]) -> Endpoint:
        """The endpoint that reads a body of `kind` and lets the engine answer."""

        async def endpoint(request: Request) -> Reply:
            service = self.service
            settings = service.settings
            body = decode(await read_body(request, settings.max_body_bytes, settings.receive_timeout), kind)
            model = service.model_named(body.model)
            tenant = tenant_of(request.state.tenant, body.cache_salt)
            ask, answer = await asyncio.to_thread(prepare, model, body, tenant)
            reply = StreamedReply if body.stream else WholeReply
            return reply(
                model.llm,
                service.runs,
                ask,
                answer,
                send_timeout=settings.send_timeout,
                ping_interval=settings.ping_interval,
            )

        return endpoint

    async def models(self, request: Request) -> Response:
        """The one model."""
        return json_response(ModelList([self.service.model.describe()]))

    async def model(self, request: Request) -> Response:
        """One model by its name, which may have slashes."""
        return json_response(self.service.model_named(request.path_params["id"]).describe())

    async def health(self, request: Request) -> Response:
        """Whether requests can be answered."""
        self.service.model  # noqa: B018  (raises when there is none)
        return json_response(Health())

    async def livez(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return json_response(Health())

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(self.service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def status(self, request: Request) -> Response:
        """How busy the server is."""
        return json_response(self._status.read())

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        return Response(self._description, media_type="application/json")

    async def websocket(self, socket: WebSocket) -> None:
        """Chats over a WebSocket."""
        await chat_socket(socket, self.service)

    async def page(self, request: Request) -> Response:
        """The web page."""
        path = STATIC / "index.html"
        if not path.is_file():
            raise ApiError(404, "this installation has no web page; the API is under /v1", code="not_found")
        headers = {"content-security-policy": CSP, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
        return FileResponse(path, headers=headers)


class PageFiles(StaticFiles):
    """The page's files; a browser asks each time whether they have changed, so that an update never meets old parts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def json_response(item: object) -> Response:
    """A struct, or a dict, as a reply."""
    return Response(msgspec.json.encode(item), media_type="application/json")
