"""Answer: what turns a run's chunks into the objects of one endpoint, whole or piece by piece.

Implemented by `chat`, `completions` and `responses`; driven by `http_reply` and `websocket`.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from deepzig.engine.results import Progress, StreamChunk
from deepzig.server.failures import ApiError


class Answer(Protocol):
    """One answer in the making. `take` is called for every chunk, whether or not it is streamed."""

    @property
    def wants_progress(self) -> bool:
        """Whether `progress` goes into the stream."""

    def start(self) -> Sequence[Struct]:
        """What a stream begins with."""

    def take(self, prompt: int, chunk: StreamChunk) -> Sequence[Struct]:
        """What a chunk of the given prompt adds to a stream."""

    def progress(self, progress: Progress, elapsed_s: float) -> Struct:
        """How far the prompt is."""

    def finish(self) -> Sequence[Struct]:
        """What a stream ends with."""

    def whole(self) -> Struct:
        """The reply, if it is not streamed."""

    def failure(self, error: ApiError) -> Struct:
        """What a stream that has begun says of an error."""

    @property
    def end_reason(self) -> str:
        """Why the answer ended, for the metrics."""
