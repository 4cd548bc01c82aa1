"""Many clients at once, and for long: answers do not mix, nothing is left behind."""

import asyncio
import gc
import json
import random
import socket
from typing import Any

import httpx2
import openai
import psutil
import pytest

from deepzig.engine.llm import LLM
from deepzig.engine.loading import load
from deepzig.engine.sampling import SamplingParams
from tests.server.conftest import RunningServer, serving
from tests.server.raw_http import post_head

PROMPTS = [
    "Once upon a time", "The cat", "One day, a little girl named Lily", "Tom had a ball. " * 15, "It was dark. " * 30,
]  # fmt: skip


def test_fifty_streams_equal_their_solo_answers(server: RunningServer, stories: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    solo = {prompt: stories.generate(prompt, params).text for prompt in PROMPTS}

    async def stream(client: openai.AsyncOpenAI, prompt: str) -> str:
        chunks = await client.completions.create(model="", prompt=prompt, max_tokens=12, temperature=0, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=100) as client:
            return await asyncio.gather(*(stream(client, PROMPTS[i % len(PROMPTS)]) for i in range(50)))

    answers = asyncio.run(run())
    assert answers == [solo[PROMPTS[i % len(PROMPTS)]] for i in range(50)]
    server.wait_until_idle()


def one_request(http: httpx2.Client, server: RunningServer, rng: random.Random) -> None:
    """A request of some kind: whole, streamed, a chat, a schema, a mistake, or a client that leaves."""
    kind = rng.choice(["whole", "stream", "chat", "schema", "mistake", "leaves"])
    body: dict[str, Any] = {"prompt": rng.choice(PROMPTS), "max_tokens": rng.randint(1, 4)}
    if kind in ("whole", "stream"):
        reply = http.post("/v1/completions", json={**body, "stream": kind == "stream"})
        assert reply.status_code == 200 and "text" in reply.text
    elif kind in ("chat", "schema"):
        form = {"type": "json_object"} if kind == "schema" else None
        chat = {"messages": [{"role": "user", "content": body["prompt"]}], "max_tokens": 3, "response_format": form}
        assert http.post("/v1/chat/completions", json=chat).status_code == 200
    elif kind == "mistake":
        assert http.post("/v1/completions", json={**body, "temperature": -1}).status_code == 400
    else:
        content = json.dumps({**body, "max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(post_head(len(content)) + content)
            connection.recv(10)


def usage() -> tuple[int, int]:
    """(bytes of memory, open files) of this process, client and server together."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds()


@pytest.mark.parametrize("n_requests", [300, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.timeout(1800)))])
def test_soak_leaves_memory_and_files_flat(n_requests: int) -> None:
    """The cache is small, so that it is full, and has all its memory, before the counting begins."""
    rng = random.Random(6)
    with load("stories", cache_bytes=6 << 20) as llm, serving(llm) as running, running.http() as http:
        for _ in range(max(100, n_requests // 20)):
            one_request(http, running, rng)
        running.wait_until_idle()
        memory, files = usage()
        for _ in range(n_requests):
            one_request(http, running, rng)
        running.wait_until_idle()
        grown = usage()
    assert grown[1] <= files + 3
    assert grown[0] - memory < 24 << 20, f"memory grew by {(grown[0] - memory) >> 20} MiB"
