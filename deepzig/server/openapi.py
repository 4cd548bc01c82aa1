"""/openapi.json: the description of the API, made of the structs that check requests and shape replies.

Called by `app`.
"""

from typing import Any

import msgspec

from deepzig.server import replies, requests
from deepzig.server.failures import ErrorBody
from deepzig.server.responses_protocol import ResponseReply, ResponsesRequest

_REQUESTS: dict[str, tuple[str, type, type | str]] = {
    "/v1/chat/completions": ("Answer a conversation.", requests.ChatRequest, replies.ChatCompletion),
    "/v1/completions": ("Continue a text.", requests.CompletionRequest, replies.Completion),
    "/v1/responses": ("Answer; nothing is stored.", ResponsesRequest, ResponseReply),
    "/tokenize": ("Token ids of a text or of messages.", requests.TokenizeRequest, replies.Tokenized),
    "/apply-template": ("The prompt of a chat as text.", requests.TemplateRequest, replies.AppliedTemplate),
    "/detokenize": ("Text of token ids.", requests.DetokenizeRequest, replies.Detokenized),
}
_QUERIES: dict[str, tuple[str, type | str]] = {
    "/v1/models": ("The model that is served.", replies.ModelList),
    "/v1/models/{id}": ("One model.", replies.ModelReply),
    "/health": ("Whether requests can be answered.", replies.Health),
    "/livez": ("Whether the process answers.", replies.Health),
    "/status": ("How busy the server is.", "application/json"),
    "/metrics": ("Prometheus' metrics.", "text/plain"),
    "/openapi.json": ("This description.", "application/json"),
}
_PUBLIC = ("/health", "/livez")
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_EVENT = {  # a server-sent event, as OpenAPI tools see it
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_ERRORS = {
    400: "The request is malformed, or cannot be served as it stands.",
    401: "The API key is missing or wrong.",
    403: "Host or Origin is not admitted.",
    404: "There is no such model or route.",
    405: "The route does not know this method.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; Retry-After tells when to come again.",
    431: "The headers are too large.",
    500: "The model or the server failed.",
    503: "The model is loading, memory is short, or the server shuts down.",
}


def description(version: str, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of this server."""
    kinds = [kind for _, *pair in [*_REQUESTS.values(), *_QUERIES.values()] for kind in pair if isinstance(kind, type)]
    refs, components = msgspec.json.schema_components([*kinds, ErrorBody], ref_template="#/components/schemas/{name}")
    schema: dict[type | str, Any] = dict(zip([*kinds, ErrorBody], refs, strict=True))
    paths: dict[str, Any] = {}
    for path, (summary, request, reply) in _REQUESTS.items():
        operation = _operation(path, summary, schema.get(reply, {}), schema[ErrorBody], "application/json")
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema[request]}}}
        if path in _STREAMED:
            operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
        paths[path] = {"post": operation}
    for path, (summary, reply) in _QUERIES.items():
        media_type = reply if isinstance(reply, str) else "application/json"
        operation = _operation(path, summary, schema.get(reply, {}), schema[ErrorBody], media_type)
        if "{id}" in path:
            operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
        if path in _PUBLIC:
            operation["security"] = []
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "deepzig", "version": version, "description": "OpenAI's API over a local model."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [{}, {"key": []}],
    }


def _operation(path: str, summary: str, reply: Any, error: Any, media_type: str) -> dict[str, Any]:
    errors = {
        str(status): {"description": text, "content": {"application/json": {"schema": error}}}
        for status, text in _ERRORS.items()
    }
    ok = {"description": "OK", "content": {media_type: {"schema": reply}}}
    return {"summary": summary, "operationId": path.strip("/").replace("/", "_"), "responses": {"200": ok, **errors}}
