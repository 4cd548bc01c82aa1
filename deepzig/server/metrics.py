"""Prometheus metrics of a server. Counted by `run` and `guard`; written out by the route /metrics."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepzig.engine.results import EngineStats, GenerationResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, stats: Callable[[], EngineStats | None], n_runs: Callable[[], int]) -> None:
        """stats gives the engine's figures, None while the model loads; n_runs the requests that are being served."""
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "deepzig_http_requests", "HTTP requests by route and status", ["route", "status"], registry=self.registry
        )
        self.first_token_seconds = self._histogram("first_token_seconds", "From request to first token", _SECONDS)
        self.token_gap_seconds = self._histogram("inter_token_seconds", "Between tokens of an answer", _GAP_SECONDS)
        self.request_seconds = self._histogram("request_seconds", "From request to end of the answer", _SECONDS)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = self._counter("cached_prompt_tokens", "Tokens of prompts found in the cache")
        self.answer_tokens = self._counter("generation_tokens", "Tokens of answers")
        self.requests = Counter(
            "deepzig_requests", "Ended generation requests by reason", ["reason"], registry=self.registry
        )
        for reason in ("stop", "length", "tool_calls", "cancelled", "error"):
            self.requests.labels(reason)
        self.registry.register(_EngineCollector(stats, n_runs))

    def finished(self, reason: str, seconds: float, results: Sequence[GenerationResult], n_tokens: int) -> None:
        """Count a request that has ended."""
        self.requests.labels(reason).inc()
        self.request_seconds.observe(seconds)
        self.answer_tokens.inc(n_tokens)
        self.prompt_tokens.inc(sum(result.timings.prompt_tokens for result in results))
        self.cached_tokens.inc(sum(result.timings.cached_tokens for result in results))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"deepzig_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"deepzig_{name}", text, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    """What the engine knows, read when it is asked for."""

    def __init__(self, stats: Callable[[], EngineStats | None], n_runs: Callable[[], int]) -> None:
        self._stats, self._n_runs = stats, n_runs

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield _gauge("model_ready", "1 when the model is loaded", int(stats is not None))
        yield _gauge("requests_open", "Generation requests that the server holds", self._n_runs())
        if stats is None:
            return
        yield _gauge("requests_running", "Requests that the engine computes", stats.n_running)
        yield _gauge("requests_waiting", "Requests in the engine's queue", stats.n_waiting)
        yield _gauge("cache_pages", "Pages of the cache", stats.n_pages)
        yield _gauge("cache_pages_held", "Pages that requests or cached prefixes hold", stats.n_held_pages)
        yield _gauge("cache_pages_prefix", "Pages of cached prefixes", stats.n_prefix_pages)
        yield _count("drafted_tokens", "Tokens drafted by speculative decoding", stats.drafted_tokens)
        yield _count("accepted_tokens", "Drafted tokens that the model accepted", stats.accepted_tokens)
        yield _count("preemptions", "Requests put back for pages, or for more urgent ones", stats.preemptions)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"deepzig_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"deepzig_{name}", text, value=value)
