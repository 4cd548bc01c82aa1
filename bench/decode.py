"""End to end: reading prompts and decoding at batch 1, beside the bytes a token needs and the bandwidth there is.

`model` runs it as a process of its own for each checkpoint, so that memory and thread pools are that model's alone; by
hand: `python -m bench.decode DIR`. Calls `deepzig.load`, and `DeepseekModel` where a request would take too long to
reach the state to be measured.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

import deepzig
from bench.machine import Limits, anonymous_bytes, better, limits
from bench.timing import best_seconds
from deepzig._kernels.weight import Weight
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.sizes import active_share, tensor_group
from deepzig.config import ModelConfig
from deepzig.engine.rows import sequence_rows
from deepzig.evaluate.speed import greedy
from deepzig.model.cache import LatentCache
from deepzig.model.deepseek import DeepseekModel
from deepzig.threads import available_threads

PROMPTS = (512, 2048)  # tokens
CONTEXTS = (64, 4096)  # cached tokens at which decoding is timed
DECODE_TOKENS = 64
REPEATS = 3
BUDGET_S = 8.0  # a measurement is not repeated once it has taken as long
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Prefill:
    """A prompt through `LLM.generate`, until the first token is chosen."""

    tokens: int
    tokens_per_s: float
    gflops: float


@dataclass(frozen=True)
class Decoding:
    """DECODE_TOKENS steps of `DeepseekModel`, each with logits and the choice of the greatest."""

    context: int  # cached tokens before the first step
    tokens_per_s: float
    bytes_per_token: int  # weights, scales and cached rows that a step reads, on average
    gb_s: float


@dataclass(frozen=True)
class Result:
    """What one process measured of one model."""

    model: str
    parameters: int
    stored_bytes: int
    load_s: float
    precision: str
    prefill: list[Prefill]
    decoding: list[Decoding]
    stream_tokens_per_s: float  # through the engine, greedy, without speculation, after a prompt of 64 tokens
    anonymous_mb: float  # above that of the process before it loaded the model, after all of the above
    before: Limits
    after: Limits

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Result":
        """From what `main` prints."""
        nested = {
            "prefill": [Prefill(**values) for values in raw["prefill"]],
            "decoding": [Decoding(**values) for values in raw["decoding"]],
            "before": Limits(**raw["before"]),
            "after": Limits(**raw["after"]),
        }
        return cls(**{**raw, **nested})

    @property
    def limits(self) -> Limits:
        """The better of before and after: what the figures are compared with."""
        return better(self.before, self.after)


def warm(directory: Path) -> None:
    """Read the weights once, so that they are in the page cache."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def active_weights(config: ModelConfig, linear: dict[str, Weight]) -> Iterator[tuple[Weight, float]]:
    """The weights that a decode step reads, and how much of each: 1, or K / E for a routed expert."""
    for module, weight in linear.items():
        if share := active_share(config, tensor_group(module, config)):
            yield weight, share


def stored_weights(linear: dict[str, Weight]) -> list[Weight]:
    """Each once: embedding and head may stand for those of an MTP layer, too."""
    return list({id(weight): weight for weight in linear.values()}.values())


def prefill_flops(config: ModelConfig, linear: dict[str, Weight], n_tokens: int) -> float:
    """Floating-point operations of a fresh prompt: the layers for all tokens, attention expanded, one row of logits."""
    head = 2 * config.vocab_size * config.hidden_size
    per_token = sum(2 * w.shape[0] * w.shape[1] * share for w, share in active_weights(config, linear)) - head
    pairs = n_tokens * (n_tokens + 1) / 2
    attention = 2 * pairs * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return n_tokens * per_token + config.num_hidden_layers * attention + head


class ModelBench:
    """A loaded model and the measurements on it."""

    def __init__(self, directory: str, n_threads: int, precision: str) -> None:
        self.llm = deepzig.load(directory, n_threads=n_threads, precision=precision)
        self.config = self.llm.config
        self._random = np.random.default_rng(0)

    def prefill(self, n_tokens: int) -> float:
        """Seconds from prompt to first token, best of REPEATS."""
        params = deepzig.SamplingParams(max_tokens=1, temperature=0.0)
        # new tokens each time: a prompt that was read before is not read again
        return best_seconds(lambda: self.llm.generate(self._tokens(n_tokens), params), REPEATS, BUDGET_S)

    def decode(self, context: int) -> tuple[float, int]:
        """(seconds, bytes of cache) a step with `context` random rows in the cache, best of REPEATS runs."""
        model = self.llm.model
        cache = model.make_cache(context + WARM_UP_TOKENS + DECODE_TOKENS)
        fill(model, cache, context, self._random)

        def run(first: int, n_tokens: int) -> None:
            for position, token in enumerate(self._tokens(n_tokens), first):
                rows = sequence_rows(position, position + 1, cache, is_prompt=False)
                int(model.logits(model.forward(np.array([token], np.int32), rows, cache))[0].argmax())

        run(context, WARM_UP_TOKENS)
        seconds = best_seconds(lambda: run(context, DECODE_TOKENS), REPEATS, BUDGET_S)
        return seconds / DECODE_TOKENS, int(cache.bytes_per_token * (context + (DECODE_TOKENS + 1) / 2))

    def stream(self) -> float:
        """Tokens a second after the first, through the engine and without speculation, best of REPEATS."""
        timings = [self.llm.generate(self._tokens(64), greedy(DECODE_TOKENS + 1)).timings for _ in range(REPEATS)]
        return max(t.decode_tokens / t.decode_s for t in timings)

    def _tokens(self, count: int) -> list[int]:
        return self._random.integers(2, self.config.vocab_size, count).tolist()


def fill(model: DeepseekModel, cache: LatentCache, n_tokens: int, random: np.random.Generator) -> None:
    """Random latents of unit variance for the first n_tokens of all layers, as if a prompt had been read."""
    rows = sequence_rows(0, n_tokens, cache)
    for layer in range(len(model.layers)):
        cache.write(layer, rows, random.standard_normal((n_tokens, model.config.latent_dim), np.float32))


def measure(
    directory: Path, n_threads: int, prompts: tuple[int, ...], contexts: tuple[int, ...], precision: str = "exact"
) -> Result:
    """Load the model in `directory` and time it, page cache warm."""
    warm(directory)
    config = ModelConfig.from_directory(directory)
    linear = load_weights(open_checkpoint(directory), config).linear
    before = limits(n_threads)
    anonymous = anonymous_bytes()
    started = perf_counter()
    bench = ModelBench(str(directory), n_threads, precision)
    load_s = perf_counter() - started
    prefill = [
        Prefill(n, n / seconds, prefill_flops(config, linear, n) / seconds / 1e9)
        for n, seconds in ((n, bench.prefill(n)) for n in prompts)
    ]
    weight_bytes = sum(weight.nbytes * share for weight, share in active_weights(config, linear))
    decoding = []
    for context in contexts:
        seconds, cache_bytes = bench.decode(context)
        n_bytes = int(weight_bytes + cache_bytes)
        decoding.append(Decoding(context, 1 / seconds, n_bytes, n_bytes / seconds / 1e9))
    return Result(
        model=directory.name,
        parameters=sum(w.shape[0] * w.shape[1] for w in stored_weights(linear)),
        stored_bytes=sum(w.nbytes for w in stored_weights(linear)),
        precision=precision,
        load_s=load_s,
        prefill=prefill,
        decoding=decoding,
        stream_tokens_per_s=bench.stream() if contexts else 0.0,
        anonymous_mb=(anonymous_bytes() - anonymous) / 1e6,
        before=before,
        after=limits(n_threads),
    )


def report(result: Result) -> Iterator[str]:
    """Lines for a reader."""
    best = result.limits
    yield f"{result.model}: {result.parameters / 1e9:.2f} G parameters, {result.stored_bytes / 1e9:.2f} GB"
    yield f"before  {result.before}"
    for p in result.prefill:
        bf16 = f", {p.gflops / best.bf16:.2f} of bf16 peak" if best.bf16 else ""
        yield (
            f"prefill {p.tokens:5}: {p.tokens_per_s:8.1f} tok/s, {p.gflops:6.1f} GFLOPS, "
            f"{p.gflops / best.sgemm:.2f} of sgemm, {p.gflops / best.fp32:.2f} of fp32 peak{bf16}"
        )
    for d in result.decoding:
        yield (
            f"decode @{d.context:5}: {d.tokens_per_s:8.1f} tok/s, {d.bytes_per_token / 1e6:.0f} MB a token, "
            f"{d.gb_s:5.1f} GB/s, {d.gb_s / best.read:.2f} of read"
        )
    yield f"stream {result.stream_tokens_per_s:.1f} tok/s; load {result.load_s:.2f} s"
    yield f"anonymous memory {result.anonymous_mb:.0f} MB"
    yield f"after   {result.after}"


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--prompt", "prompts", multiple=True, default=PROMPTS, show_default=True)
@click.option("--context", "contexts", multiple=True, default=CONTEXTS, show_default=True, help="0: no decoding")
@click.option("--precision", default="exact", show_default=True, type=click.Choice(["exact", "fast"]))
def main(
    directory: Path, threads: int | None, prompts: tuple[int, ...], contexts: tuple[int, ...], precision: str
) -> None:
    """Time a model folder; a few lines for a reader, then one of JSON."""
    contexts = tuple(context for context in contexts if context)
    result = measure(directory, threads or available_threads(), prompts, contexts, precision)
    for line in report(result):
        click.echo(line)
    click.echo(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
