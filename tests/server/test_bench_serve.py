"""`deepzig bench serve` against the real server."""

from deepzig.engine.llm import LLM
from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target, run
from tests.server.conftest import RunningServer, serving


def load(server: RunningServer, plan: LoadPlan, endpoint: str, api_key: str | None = None) -> LoadResult:
    result = LoadResult()
    target = Target(server.url, "chat" if endpoint == "chat" else "completions", api_key=api_key)
    run(target, plan, result, lambda: None)
    return result


def check(result: LoadResult, requests: int) -> None:
    assert not result.errors and len(result.answers) == requests and result.counts_tokens
    assert result.model == "stories"
    assert result.answer_tokens == 6 * requests
    assert result.prompt_tokens is not None and abs(result.prompt_tokens - 40) < 8
    assert all(figure.mean > 0 for figure in result.figures())


def test_completions(server: RunningServer) -> None:
    check(load(server, LoadPlan(5, 40, 6, concurrency=2, ignore_eos=True), "completions"), 5)
    server.wait_until_idle()


def test_chat_with_a_key_and_a_rate(stories: LLM) -> None:
    with serving(stories, api_keys=("long key",)) as server:
        check(load(server, LoadPlan(4, 40, 6, rate=200.0, ignore_eos=True), "chat", "long key"), 4)


def test_prompts_are_read_anew(server: RunningServer) -> None:
    """No prompt is found in the cache, but for BOS and perhaps a first word."""
    assert server.llm is not None
    plan = LoadPlan(6, 64, 2, concurrency=3, ignore_eos=True)
    load(server, plan, "completions")
    before = server.llm.stats()
    load(server, plan, "completions")  # a second run sends others than the first
    after = server.llm.stats()
    assert after.prompt_tokens - before.prompt_tokens > 6 * 56
    assert after.cached_tokens - before.cached_tokens <= 8 * 5
