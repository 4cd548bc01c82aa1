"""The serving engine: many requests together, shared prefixes, speculation, the deterministic mode.

By hand: `python -m bench.engine [PART]...`, on the bundled model and on synthetic checkpoints, which it writes if they
are not there (`synthetic`). Calls `LLM.submit`; times of the model alone stand beside those of the engine. A few lines
for a reader, then one of JSON.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import click
import numpy as np

import deepzig
from bench.decode import warm
from bench.machine import limits
from bench.synthetic import Synthetic, default_directory, ensure
from bench.timing import best_seconds
from deepzig.engine.results import GenerationResult
from deepzig.evaluate.speed import greedy
from deepzig.model.cache import PAGE_SIZE, Rows
from deepzig.threads import available_threads

PARTS = ("stories", "layers", "prefix", "stories-mtp", "layers-mtp", "deterministic")
N_LAYERS = 9
REPEATS = 3
WAYS = (("off", 1), ("mtp", 1), ("mtp", 2), ("mtp", 3), ("ngram", 3), ("auto", 3))
STARTS = ("Once upon a time", "Tom had a red ball", "Lily saw a big dog", "One day, a girl named Sue", "The sun was")


@dataclass(frozen=True)
class Together:
    """So many equal requests at once, best of REPEATS by tokens_per_s."""

    model: str
    requests: int
    answer_tokens: int
    tokens_per_s: float  # of all answers, from the first submission to the last token
    decode_tokens_per_s: float  # of what follows the first tokens, from the first of these to the last token of all
    model_tokens_per_s: float  # the model's steps alone, without engine, at as many rows
    longest_wait: float  # of a request from submission to its last token, over the mean of all
    longest_first: float  # the same for the first token


@dataclass(frozen=True)
class Prefix:
    """A second request that shares all but the last of its prompt tokens with the first."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    first_token_s: float
    cold_first_token_s: float
    decode_step_s: float


@dataclass(frozen=True)
class Speculation:
    """Answers with speculative decoding, one request at a time."""

    model: str
    way: str
    draft_tokens: int
    temperature: float
    drafted: int
    accepted: int
    tokens_per_s: float
    reported_gain: float | None  # mean of what the results say
    same_tokens: bool  # as without


@dataclass(frozen=True)
class Deterministic:
    """What the deterministic mode costs."""

    model: str
    prompt_tokens: int
    prefill_tokens_per_s: float
    deterministic_prefill_tokens_per_s: float
    decode_tokens_per_s: float
    deterministic_decode_tokens_per_s: float


Figure = Together | Prefix | Speculation | Deterministic


class EngineBench:
    """A loaded model and measurements of its engine."""

    def __init__(self, folder: str, name: str, deterministic: bool = False) -> None:
        self.name = name
        if folder != "stories":
            warm(Path(folder))
        self.llm = deepzig.load(folder, deterministic=deterministic)
        self._random = np.random.default_rng(0)

    def together(self, n_requests: int, prompt_tokens: int, answer_tokens: int) -> Together:
        """n_requests greedy answers to different prompts."""
        params = greedy(answer_tokens)
        best: Together | None = None
        for _ in range(REPEATS):
            prompts = [self._tokens(prompt_tokens) for _ in range(n_requests)]
            submitted, generations = [], []
            started = perf_counter()
            for prompt in prompts:
                submitted.append(perf_counter() - started)
                generations.append(self.llm.submit(prompt, params))
            timings = [generation.result().timings for generation in generations]
            waits = np.array([each.first_token_s for each in timings])
            first = np.array(submitted) + waits
            last = first + np.array([each.decode_s for each in timings])
            whole = last - np.array(submitted)
            found = Together(
                model=self.name,
                requests=n_requests,
                answer_tokens=answer_tokens,
                tokens_per_s=n_requests * answer_tokens / last.max(),
                decode_tokens_per_s=n_requests * (answer_tokens - 1) / (last.max() - first.min()),
                model_tokens_per_s=0.0,
                longest_wait=float(whole.max() / whole.mean()),
                longest_first=float(waits.max() / waits.mean()),
            )
            if best is None or found.tokens_per_s > best.tokens_per_s:
                best = found
        assert best is not None
        alone = n_requests / self._step_seconds(n_requests, prompt_tokens + answer_tokens // 2)
        return Together(**{**asdict(best), "model_tokens_per_s": alone})

    def prefix(self, prompt_tokens: int = 512) -> Prefix:
        """The same prompt twice but for its last token."""
        prompt = self._tokens(prompt_tokens)
        cold = self.llm.generate(prompt, greedy(1))
        again = self.llm.generate([*prompt[:-1], (prompt[-1] + 1) % self.llm.config.vocab_size], greedy(9))
        return Prefix(
            model=self.name,
            prompt_tokens=prompt_tokens,
            cached_tokens=again.timings.cached_tokens,
            first_token_s=again.timings.first_token_s,
            cold_first_token_s=cold.timings.first_token_s,
            decode_step_s=again.timings.decode_s / again.timings.decode_tokens,
        )

    def speculation(self, answer_tokens: int, n_texts: int, temperature: float) -> Iterator[Speculation]:
        """Every way of drafting, on the same prompts."""
        plain: list[list[int]] = []
        for way, draft_tokens in WAYS:
            results = []
            for text in range(n_texts):
                params = deepzig.SamplingParams(
                    answer_tokens, temperature=temperature, seed=text, ignore_eos=True, speculation=way,
                    draft_tokens=draft_tokens,
                )  # fmt: skip
                prompt = STARTS[text % len(STARTS)] if self.llm.tokenizer else self._same_tokens(text, 64)
                results.append(self.llm.submit(prompt, params, tenant=f"{way} {draft_tokens} {text}").result())
            tokens = [result.token_ids for result in results]
            plain = plain or tokens
            yield self._speculation(way, draft_tokens, temperature, results, tokens == plain)

    def prefill(self, prompt_tokens: int) -> float:
        """Tokens a second of a new prompt."""
        seconds = best_seconds(lambda: self.llm.generate(self._tokens(prompt_tokens), greedy(1)), REPEATS)
        return prompt_tokens / seconds

    def decode(self, answer_tokens: int) -> float:
        """Tokens a second of one answer."""
        timings = [self.llm.generate(self._tokens(16), greedy(answer_tokens)).timings for _ in range(REPEATS)]
        return max(each.decode_tokens / each.decode_s for each in timings)

    def _speculation(
        self, way: str, draft_tokens: int, temperature: float, results: list[GenerationResult], same: bool
    ) -> Speculation:
        timings = [result.timings for result in results]
        gains = [each.speculation_gain for each in timings if each.speculation_gain is not None]
        return Speculation(
            model=self.name,
            way=way,
            draft_tokens=draft_tokens,
            temperature=temperature,
            drafted=sum(each.drafted_tokens for each in timings),
            accepted=sum(each.accepted_tokens for each in timings),
            tokens_per_s=sum(each.decode_tokens for each in timings) / sum(each.decode_s for each in timings),
            reported_gain=sum(gains) / len(gains) if gains else None,
            same_tokens=same,
        )

    def _step_seconds(self, n_rows: int, context: int) -> float:
        """A step of the model alone: forward, logits and the greatest of each row."""
        model = self.llm.model
        n_blocks = -(-(context + 1) // PAGE_SIZE)
        cache = model.make_cache(n_rows * n_blocks * PAGE_SIZE)
        rows = Rows(
            positions=np.full(n_rows, context, np.int32),
            row_sequence=np.arange(n_rows, dtype=np.int32),
            block_tables=np.arange(n_rows * n_blocks, dtype=np.int32).reshape(n_rows, n_blocks),
            is_prompt=False,
        )

        def step() -> None:
            tokens = np.array(self._tokens(n_rows), np.int32)  # others each time: other experts
            model.logits(model.forward(tokens, rows, cache)).argmax(axis=1)

        def steps() -> None:
            for _ in range(8):
                step()

        return best_seconds(steps, REPEATS + 1) / 8

    def _tokens(self, count: int) -> list[int]:
        return self._random.integers(2, self.llm.config.vocab_size, count).tolist()

    def _same_tokens(self, seed: int, count: int) -> list[int]:
        return np.random.default_rng(seed).integers(2, self.llm.config.vocab_size, count).tolist()


def measure(part: str, directory: Path) -> Iterator[Figure]:
    """The figures of one of PARTS."""
    if part in ("stories", "stories-mtp"):
        bench = EngineBench("stories", "stories")
        if part == "stories":
            yield from (bench.together(n, 12, 100) for n in (1, 8, 64))
        else:
            yield from bench.speculation(100, 20, 0.0)
            yield from bench.speculation(100, 20, 0.8)
        return
    checkpoint = Synthetic("int8", N_LAYERS, with_mtp=part == "layers-mtp")
    folder = str(ensure(checkpoint, directory))
    bench = EngineBench(folder, checkpoint.name)
    if part == "layers":
        yield from (bench.together(n, 16, 24) for n in (1, 8))
    elif part == "prefix":
        yield bench.prefix()
    elif part == "layers-mtp":
        yield from bench.speculation(32, 2, 0.0)
    else:
        exact = EngineBench(folder, checkpoint.name, deterministic=True)
        yield Deterministic(
            checkpoint.name, 512, bench.prefill(512), exact.prefill(512), bench.decode(16), exact.decode(16)
        )


def line(figure: Figure) -> str:
    """For a reader."""
    match figure:
        case Together():
            return (
                f"{figure.model}: {figure.requests:2} requests {figure.tokens_per_s:8.1f} tok/s, decoding "
                f"{figure.decode_tokens_per_s:8.1f}, model alone {figure.model_tokens_per_s:8.1f}; longest wait "
                f"{figure.longest_wait:.2f} of the mean, for the first token {figure.longest_first:.2f}"
            )
        case Prefix():
            return (
                f"{figure.model}: {figure.cached_tokens} of {figure.prompt_tokens} tokens found, first token after "
                f"{figure.first_token_s:.3f} s, {figure.first_token_s / figure.decode_step_s:.2f} decode steps "
                f"({figure.cold_first_token_s:.2f} s without)"
            )
        case Speculation():
            share = figure.accepted / figure.drafted if figure.drafted else 0
            gain = "" if figure.reported_gain is None else f", reported gain {figure.reported_gain:.2f}"
            return (
                f"{figure.model} T={figure.temperature} {figure.way:5} {figure.draft_tokens}: "
                f"{figure.tokens_per_s:7.1f} tok/s, {figure.accepted} of {figure.drafted} accepted ({share:.0%})"
                f"{gain}, {'same tokens' if figure.same_tokens else 'OTHER TOKENS'}"
            )
        case Deterministic():
            return (
                f"{figure.model}: prompt {figure.prefill_tokens_per_s:.1f} tok/s, deterministic "
                f"{figure.deterministic_prefill_tokens_per_s:.1f}; decoding {figure.decode_tokens_per_s:.1f}, "
                f"deterministic {figure.deterministic_decode_tokens_per_s:.1f}"
            )


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="parent folder of synthetic checkpoints")
def main(parts: tuple[str, ...], directory: Path | None) -> None:
    """Time the serving engine; without PARTS all of them."""
    n_threads = available_threads()
    before = limits(n_threads)
    click.echo(f"before  {before}")
    figures: list[Figure] = []
    for part in parts or PARTS:
        for figure in measure(part, directory or default_directory()):
            figures.append(figure)
            click.echo(line(figure))
    after = limits(n_threads)
    click.echo(f"after   {after}")
    found = [{"kind": type(figure).__name__, **asdict(figure)} for figure in figures]
    click.echo(json.dumps({"before": asdict(before), "after": asdict(after), "figures": found}))


if __name__ == "__main__":
    main()
