"""ApiError: a failure as the client sees it; and what each class of `deepzig.errors` becomes.

Called wherever a request can fail. The body is OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from deepzig.errors import (
    ClusterError,
    ContextLengthError,
    DeepzigError,
    NonFiniteLogitsError,
    QueueFullError,
    RequestError,
    ResourceError,
    TokenizerError,
)

log = logging.getLogger("deepzig.server")

RETRY_QUEUE_S = 5  # when to come again to a full queue
RETRY_CLUSTER_S = 10  # and after a machine was lost
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}


class ErrorDetail(msgspec.Struct):
    """The inner object of OpenAI's error body."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """OpenAI's error body."""

    error: ErrorDetail


class ApiError(Exception):
    """A failure with its status, ready to be sent."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after  # seconds; None: trying again will not help

    @property
    def body(self) -> ErrorBody:
        """What the client reads."""
        return ErrorBody(ErrorDetail(self.message, _TYPES.get(self.status, "server_error"), self.param, self.code))

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's clients retry 408, 409, 429 and 5xx unless told not to."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        headers = {"x-should-retry": "false"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def shutting_down() -> ApiError:
    """What those are told who come too late, or whose request takes longer than the shutdown waits."""
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=30)


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Raises ApiError that names `field` of the request where a prompt exceeds the context."""
    try:
        yield
    except ContextLengthError as error:
        raise ApiError(400, str(error), code="context_length_exceeded", param=field) from error


def as_api_error(error: BaseException) -> ApiError:
    """Any failure of a request; faults of our own are logged and their details kept from the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=RETRY_QUEUE_S)
    if isinstance(error, RequestError | TokenizerError):  # a template fails because of what it was given
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, NonFiniteLogitsError):
        log.error("%s", error)
        return ApiError(500, str(error), code="nonfinite_logits")
    if isinstance(error, ResourceError | MemoryError):
        log.error("overloaded: %s", error)
        return ApiError(503, "there is not enough memory now; try again later", code="overloaded", retry_after=10)
    if isinstance(error, ClusterError):
        log.error("%s", error)
        return ApiError(503, str(error), code="machine_lost", retry_after=RETRY_CLUSTER_S)
    if isinstance(error, DeepzigError):
        log.error("%s", error)
        return ApiError(500, str(error), code="engine_error")
    log.error("a request failed by a fault of the server", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")
