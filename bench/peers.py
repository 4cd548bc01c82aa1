"""Other engines on the same weights, with the same threads, right after deepzig: transformers bf16, llama.cpp Q8_0.

Called by `__main__`; runs itself as a process for each peer. What is not installed is reported as such; the recipe is
in docs/performance.md.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from bench.decode import BUDGET_S, DECODE_TOKENS, REPEATS
from bench.model import decode_process
from bench.synthetic import ARCHITECTURE, Synthetic, ensure
from bench.timing import best_seconds

PROMPT = 512
CONTEXT = 64


@dataclass(frozen=True)
class Peer:
    """Another engine: what it is, what it needs, and the format of deepzig that it is compared with."""

    name: str
    modules: tuple[str, ...]
    format: str


PEERS = {
    "transformers": Peer("transformers bf16", ("torch", "transformers"), "bf16"),
    "llama_cpp": Peer("llama.cpp Q8_0", ("llama_cpp", "gguf"), "int8"),
}


@dataclass(frozen=True)
class PeerRun:
    """Rates in tok/s of a peer and of deepzig, or why there are none."""

    peer: str
    format: str  # of deepzig
    problem: str = ""
    peer_prefill: float = 0.0
    peer_decode: float = 0.0
    exact_prefill: float = 0.0
    fast_prefill: float = 0.0
    exact_decode: float = 0.0


def run(n_layers: int, directory: Path, n_threads: int) -> Iterator[PeerRun]:
    """Each peer after deepzig on the same weights."""
    for key, peer in PEERS.items():
        missing = [module for module in peer.modules if importlib.util.find_spec(module) is None]
        if missing:
            yield PeerRun(peer.name, peer.format, f"not installed: {', '.join(missing)}")
            continue
        folder = ensure(Synthetic(peer.format, n_layers), directory)
        file = _file_for(key, folder, n_layers, directory)  # before timing, since the disk is busy afterwards
        exact = decode_process(folder, n_threads, (PROMPT,), (CONTEXT,))
        fast = decode_process(folder, n_threads, (PROMPT,), (), "--precision", "fast")
        prefill, decode = _process(key, file, n_threads)
        yield PeerRun(
            peer.name,
            peer.format,
            peer_prefill=prefill,
            peer_decode=decode,
            exact_prefill=exact.prefill[0].tokens_per_s,
            fast_prefill=fast.prefill[0].tokens_per_s,
            exact_decode=exact.decoding[0].tokens_per_s,
        )


def _file_for(key: str, folder: Path, n_layers: int, directory: Path) -> Path:
    if key == "llama_cpp":
        from bench.gguf_file import ensure_gguf

        return ensure_gguf(n_layers, directory)
    return folder


def _process(key: str, path: Path, n_threads: int) -> tuple[float, float]:
    """(prefill, decode) in tok/s, measured by `main` in a process of its own."""
    command = [sys.executable, "-m", "bench.peers", key, str(path), "--threads", str(n_threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    rates = json.loads(done.stdout.splitlines()[-1])
    return rates["prefill"], rates["decode"]


def _rates(prefill: Callable[[list[int]], None], step: Callable[[int], None]) -> tuple[float, float]:
    """Time `prefill`, which starts a new sequence, and `step`, which adds a token and chooses the next; as often as
    `bench.decode` does for deepzig, since the best counts."""
    ids = np.random.default_rng(0).integers(2, ARCHITECTURE["vocab_size"], PROMPT).tolist()

    def steps() -> None:
        for token in ids[:DECODE_TOKENS]:
            step(token)

    prefill(ids)
    prefill_s = best_seconds(lambda: prefill(ids), REPEATS, BUDGET_S)
    prefill(ids[:CONTEXT])
    step(ids[0])
    return PROMPT / prefill_s, DECODE_TOKENS / best_seconds(steps, REPEATS, BUDGET_S)


def measure_transformers(folder: Path, n_threads: int) -> tuple[float, float]:
    """(prefill, decode) of Hugging Face transformers on the CPU, weights in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(n_threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    cache = None

    def forward(ids: list[int]) -> None:
        nonlocal cache
        output = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        int(output.logits[0, -1].argmax())

    def prefill(ids: list[int]) -> None:
        nonlocal cache
        cache = None
        forward(ids)

    with torch.inference_mode():
        return _rates(prefill, lambda token: forward([token]))


def measure_llama_cpp(path: Path, n_threads: int) -> tuple[float, float]:
    """(prefill, decode) of llama.cpp through llama-cpp-python."""
    from llama_cpp import Llama

    llama = Llama(
        str(path),
        n_ctx=2 * PROMPT,
        n_batch=PROMPT,
        n_ubatch=PROMPT,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )

    def step(token: int) -> None:
        llama.eval([token])
        int(np.argmax(llama._ctx.get_logits_ith(-1)[: llama.n_vocab()]))

    def prefill(ids: list[int]) -> None:
        llama.reset()
        llama.eval(ids)

    return _rates(prefill, step)


@click.command()
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--threads", required=True, type=click.IntRange(min=1))
def main(peer: str, path: Path, threads: int) -> None:
    """Time a peer on a checkpoint or a GGUF file; one line of JSON."""
    measure = {"transformers": measure_transformers, "llama_cpp": measure_llama_cpp}[peer]
    prefill, decode = measure(path, threads)
    click.echo(json.dumps({"prefill": prefill, "decode": decode}))


if __name__ == "__main__":
    main()
