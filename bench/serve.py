"""What the server adds to a token: streams over HTTP beside the same requests in Python. `python -m bench.serve`.

Starts `deepzig serve` as a process of its own; the client reads raw bytes, so that what it costs is small. Both ways
generate the same tokens of the bundled model, greedily, and the best of a few runs counts.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import click
import psutil

import deepzig
from bench.machine import describe
from deepzig.threads import available_threads

TOKENS = 200  # of each stream
RUNS = 12
PROMPTS = ("Once upon a time", "The cat", "One day, Tom", "It was dark", "Lily had a ball", "The sun", "A bird", "Mum")


@dataclass(frozen=True)
class ServerCost:
    """Times of all streams together, in seconds, and what a token costs more over HTTP, in milliseconds."""

    streams: int
    tokens: int
    direct_s: float
    http_s: float
    direct_cpu_s: float
    http_cpu_s: float  # of the server's process alone
    added_ms_per_token: float  # of wall time
    added_cpu_ms_per_token: float


@contextmanager
def running_server() -> Iterator[tuple[int, psutil.Process]]:
    """`deepzig serve` on a free port: (port, process)."""
    command = [sys.executable, "-m", "deepzig", "serve", "-m", "stories", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
            assert found is not None
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()


async def read_streams(port: int, n_streams: int) -> int:
    """Read n_streams at once; returns how many tokens came."""

    async def read(prompt: str) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(
            {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
        ).encode()
        lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""])
        writer.write(head.encode() + body)
        content = await reader.read()
        writer.close()
        return content.count(b"data: {")

    return sum(await asyncio.gather(*(read(PROMPTS[i % len(PROMPTS)]) for i in range(n_streams))))


def measure(n_streams: int) -> ServerCost:
    """Both ways in turn, so that both meet the same machine."""
    params = deepzig.SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    direct, http = [], []
    me = psutil.Process()
    with deepzig.load("stories") as llm, running_server() as (port, process):
        for _ in range(RUNS + 1):
            started, cpu = time.perf_counter(), sum(me.cpu_times()[:2])
            generations = [llm.submit(PROMPTS[i % len(PROMPTS)], params) for i in range(n_streams)]
            n_tokens = sum(len(generation.result().token_ids) for generation in generations)
            direct.append((time.perf_counter() - started, sum(me.cpu_times()[:2]) - cpu))
            started, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
            n_events = asyncio.run(read_streams(port, n_streams))
            http.append((time.perf_counter() - started, sum(process.cpu_times()[:2]) - cpu))
            assert n_events >= n_tokens * 0.9, "nearly every token is an event"
    direct_s, http_s = (min(run[0] for run in runs[1:]) for runs in (direct, http))  # the first warms up
    direct_cpu_s, http_cpu_s = (min(run[1] for run in runs[1:]) for runs in (direct, http))
    return ServerCost(
        streams=n_streams,
        tokens=n_tokens,
        direct_s=direct_s,
        http_s=http_s,
        direct_cpu_s=direct_cpu_s,
        http_cpu_s=http_cpu_s,
        added_ms_per_token=1000 * (http_s - direct_s) / n_tokens,
        added_cpu_ms_per_token=1000 * (http_cpu_s - direct_cpu_s) / n_tokens,
    )


@click.command()
@click.option("--streams", multiple=True, type=int, default=(1, 8))
def main(streams: tuple[int, ...]) -> None:
    """Print a line for each number of streams, and all of it as JSON last."""
    costs = [measure(n) for n in streams]
    for cost in costs:
        click.echo(
            f"{cost.streams} streams, {cost.tokens} tokens: {cost.tokens / cost.direct_s:.0f} tok/s in Python, "
            f"{cost.tokens / cost.http_s:.0f} over HTTP; a token takes {cost.added_ms_per_token:.3f} ms more "
            f"({cost.added_cpu_ms_per_token:.3f} ms of CPU)"
        )
    click.echo(json.dumps({**describe(available_threads()), "serve": [asdict(cost) for cost in costs]}))


if __name__ == "__main__":
    main()
