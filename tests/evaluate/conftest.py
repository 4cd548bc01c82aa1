"""A server that answers as a test says, and load for it."""

from collections.abc import Iterator

import pytest

from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target, run
from tests.odd_server import OddServer, odd_server

NESTED = 100_000  # brackets, deeper than any stack


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server() as running:
        yield running


def load(server: OddServer, requests: int = 1, **plan: float | None) -> LoadResult:
    result = LoadResult()
    given = {"prompt_tokens": 10, "max_tokens": 3, "concurrency": 1, "timeout_s": 20.0, **plan}
    run(Target(server.url), LoadPlan(requests, **given), result, lambda: None)  # type: ignore[arg-type]
    return result
