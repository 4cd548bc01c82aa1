"""How fast a model reads prompts and decodes, as users see it: through `LLM.submit`.

Called by the command line; calls the engine. Prompts are random tokens, new ones each time, so that only the contexts
of `depth` are found in the cache. Answers are greedy and without speculation, which depends on the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from deepzig.engine.llm import LLM
from deepzig.engine.sampling import SamplingParams
from deepzig.engine.scheduler import MAX_RUNNING
from deepzig.errors import RequestError
from deepzig.model.cache import PAGE_SIZE

WARM_UP_TOKENS = 4  # of an answer
FIRST_TOKEN_ID = 2  # below it lie BOS and EOS
SEED = 0


@dataclass(frozen=True)
class SpeedTest:
    """One thing to measure: tokens a second of all requests together."""

    kind: Literal["prompt", "decode"]
    n_tokens: int  # of each prompt; or of each answer, after its first
    depth: int = 0  # tokens before them, in the cache already
    concurrency: int = 1  # requests at once, each with a context of its own

    def __post_init__(self) -> None:
        if self.n_tokens < 1 or self.depth < 0:
            raise RequestError(f"{self.n_tokens} tokens after {self.depth} cannot be measured; give 1 or more, after 0")
        if not 1 <= self.concurrency <= MAX_RUNNING:
            raise RequestError(f"{self.concurrency} requests at once cannot be computed together; 1 to {MAX_RUNNING}")

    @property
    def name(self) -> str:
        """The name, as in llama-bench: pp512, tg64 @4096, tg64 x8."""
        depth = f" @{self.depth}" if self.depth else ""
        together = f" x{self.concurrency}" if self.concurrency > 1 else ""
        return f"{'pp' if self.kind == 'prompt' else 'tg'}{self.n_tokens}{depth}{together}"

    @property
    def n_prompt(self) -> int:
        """Tokens of a prompt after its context: at least one if an answer follows."""
        return self.n_tokens if self.kind == "prompt" else 1

    @property
    def n_answer(self) -> int:
        """Tokens of an answer; the first one counts to the prompt."""
        return 1 if self.kind == "prompt" else self.n_tokens + 1

    @property
    def length(self) -> int:
        """Tokens of a whole sequence."""
        return self.depth + self.n_prompt + self.n_answer


def check_room(llm: LLM, tests: Sequence[SpeedTest]) -> None:
    """Raise RequestError if a test does not fit the context or the cache; then nothing is measured."""
    context, n_pages = llm.config.max_position_embeddings, llm.stats().n_pages
    for test in tests:
        if test.length > context:
            raise RequestError(f"{test.name} is {test.length} tokens long, but the context holds {context}; take fewer")
        needed = test.concurrency * -(-test.length // PAGE_SIZE)
        if needed > n_pages:
            raise RequestError(
                f"{test.name} needs a cache for {needed * PAGE_SIZE} tokens, and there are {n_pages * PAGE_SIZE}; "
                "give a larger --cache-bytes, or less --depth or --concurrency"
            )


def measure(llm: LLM, tests: Sequence[SpeedTest], repetitions: int) -> Iterator[tuple[SpeedTest, float | None]]:
    """Run each test once to warm up, which yields None, then `repetitions` times; yields tokens a second, one by one.

    Raises:
        RequestError: see `check_room`.
    """
    check_room(llm, tests)
    bench = _SpeedBench(llm)
    for test in tests:
        bench.warm_up(test)
        yield test, None
        for _ in range(repetitions):
            yield test, bench.tokens_per_s(test)


def greedy(answer_tokens: int) -> SamplingParams:
    """Parameters for an answer of exactly this many tokens, without speculation, so that the speed is that of the
    model."""
    return SamplingParams(answer_tokens, temperature=0.0, ignore_eos=True, speculation="off")


class _SpeedBench:
    """A model, and the contexts that are in its cache."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = np.random.default_rng(SEED)
        self._contexts: dict[int, list[list[int]]] = {}  # by depth; tokens of each request's context

    def warm_up(self, test: SpeedTest) -> None:
        """Bring weights and contexts into memory and caches."""
        contexts = self._contexts.setdefault(test.depth, [])
        while len(contexts) < test.concurrency:
            contexts.append(self._tokens(test.depth))
        self._run(test, min(test.n_answer, WARM_UP_TOKENS))

    def tokens_per_s(self, test: SpeedTest) -> float:
        """Tokens a second: for a prompt until all requests have their first token; for answers from the first one's
        first token to the last one's last. Includes time in which only some requests run."""
        first, last, n_read = self._run(test, test.n_answer)
        if test.kind == "prompt":
            return n_read / max(first)
        return test.concurrency * test.n_tokens / (max(last) - min(first))

    def _run(self, test: SpeedTest, n_answer: int) -> tuple[list[float], list[float], int]:
        """Seconds from the start to each request's first and last token; prompt tokens that were computed."""
        contexts = self._contexts[test.depth][: test.concurrency]
        prompts = [[*context, *self._tokens(test.n_prompt)] for context in contexts]
        started = perf_counter()
        submitted, generations = [], []
        try:
            for prompt in prompts:
                submitted.append(perf_counter() - started)
                generations.append(self._llm.submit(prompt, greedy(n_answer)))
            timings = [generation.result().timings for generation in generations]
        finally:  # after Ctrl-C
            for generation in generations:
                generation.cancel()
        first = [at + each.first_token_s for at, each in zip(submitted, timings, strict=True)]
        last = [at + each.decode_s for at, each in zip(first, timings, strict=True)]
        return first, last, sum(each.prompt_tokens - each.cached_tokens for each in timings)

    def _tokens(self, count: int) -> list[int]:
        return self._random.integers(FIRST_TOKEN_ID, self._llm.config.vocab_size, count).tolist()
