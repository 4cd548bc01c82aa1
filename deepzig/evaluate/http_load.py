"""Load for an OpenAI-compatible server, of deepzig or others: many streamed requests, and the times of their answers.

Called by the command line; calls `http_answer`. Knows nothing of the model behind the server. Prompts are common
English words, enough of them for the wanted number of tokens by the server's own count.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, Any, Literal

import httpx2
import msgspec

from deepzig.errors import NetworkError, RequestError
from deepzig.evaluate.figures import Figure
from deepzig.evaluate.http_answer import NOT_JSON, Answer, AnswerFailedError, ask, error_message, reason_of

WORDS = (  # one token each in most vocabularies
    "the and was to a it he she they you we said for in on with that but not had saw one day so very big little old "
    "new good time home work water light night hand side year school world house city road river tree friend food "
    "book name line end way part place case week story life long high small large next early young last right"
)
FEW_WORDS = 8
WARM_UP_TOKENS = 4
CONNECT_TIMEOUT_S = 10.0
PATHS = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class Target:
    """The server to ask."""

    url: str
    endpoint: Literal["completions", "chat"] = "completions"
    model: str | None = None  # None: the first that the server lists
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise RequestError(f"{self.url!r} is no URL ({error}); give one as http://127.0.0.1:8000") from error
        if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 1) < 1 << 16:
            raise RequestError(f"{self.url!r} is no URL of a server; give one as http://127.0.0.1:8000")
        if url.userinfo or url.query or url.fragment:
            raise RequestError("a URL with a password, a query or a fragment is not for a bench; use --api-key")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise RequestError("the key has a character that no key has, such as a line end; give it without")
        if self.model is not None and not _is_unicode(self.model):
            raise RequestError(f"{self.model!r} is no name of a model: it is not Unicode")

    @property
    def base_url(self) -> str:
        """The URL, with /v1 if it names no other path."""
        url = self.url.rstrip("/")
        return url if httpx2.URL(url).path.strip("/") else f"{url}/v1"


def _is_unicode(text: str) -> bool:
    """Whether a text can be sent; bytes of the command line that are no UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True)
class LoadPlan:
    """How many requests to send, how long and how fast."""

    requests: int
    prompt_tokens: int
    max_tokens: int
    concurrency: int | None = None  # requests at once; None: no limit, only --rate
    rate: float | None = None  # requests a second, at random moments (a Poisson process); None: as fast as they end
    ignore_eos: bool = False
    timeout_s: float = 600.0  # for a whole answer

    def __post_init__(self) -> None:
        if min(self.requests, self.prompt_tokens, self.max_tokens) < 1 or self.concurrency == 0:
            raise RequestError("numbers of requests and tokens are 1 or more")
        numbers = [self.timeout_s] if self.rate is None else [self.timeout_s, self.rate]
        if not all(0 < number < math.inf for number in numbers):
            raise RequestError("rate and timeout are finite numbers above 0")
        if self.rate is None and self.concurrency is None:
            raise RequestError("requests need a concurrency, a rate or both")


@dataclass
class LoadResult:
    """The results so far, of whole answers only."""

    model: str = ""
    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    started: float = 0.0  # perf_counter

    @property
    def counts_tokens(self) -> bool:
        """Whether the server said how long its answers are; else each chunk counts as a token."""
        return all(answer.answer_tokens is not None for answer in self.answers)

    @property
    def seconds(self) -> float:
        """Time from the first request to the end of the last answer."""
        return max(answer.ended for answer in self.answers) - self.started

    @property
    def prompt_tokens(self) -> float | None:
        """Mean length of a prompt, as the server counts."""
        counts = [answer.prompt_tokens for answer in self.answers if answer.prompt_tokens is not None]
        return sum(counts) / len(counts) if counts else None

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.n_tokens for answer in self.answers)

    def figures(self) -> list[Figure]:
        """The figures, none without answers; those on tokens after the first only if there are any."""
        if not self.answers:
            return []
        first = [answer.text_times[0] - answer.asked for answer in self.answers]
        further = [
            (answer.text_times[-1] - answer.text_times[0]) / (answer.n_tokens - 1)
            for answer in self.answers
            if len(answer.text_times) > 1 and answer.n_tokens > 1
        ]
        gaps = [
            after - before
            for answer in self.answers
            for before, after in zip(answer.text_times, answer.text_times[1:], strict=False)
        ]
        whole = [answer.ended - answer.asked for answer in self.answers]
        times = {"first token": first, "further token": further, "between chunks": gaps, "whole answer": whole}
        return [
            *(
                Figure(name, "s", [round(sample, 6) for sample in samples], is_independent=samples is not gaps)
                for name, samples in times.items()
                if samples
            ),
            Figure("answers", "tok/s", [self.answer_tokens / self.seconds], is_independent=False),
        ]


def run(target: Target, plan: LoadPlan, result: LoadResult, on_change: Callable[[], None]) -> None:
    """Send two requests to warm up and to learn the length of words, then those of `plan`. `result` keeps what has
    come, even if this is interrupted.

    Raises:
        NetworkError: the server cannot be reached, lists no model, or refuses the first request.
    """
    asyncio.run(_run(target, plan, result, on_change))


async def _run(target: Target, plan: LoadPlan, result: LoadResult, on_change: Callable[[], None]) -> None:
    headers = {"accept-encoding": "identity"}  # a compressed stream may be held back
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    async with _client(target.base_url, headers, plan.timeout_s) as client:
        result.model = target.model or await _first_model(client, plan.timeout_s)
        load = _Load(client, target.endpoint, plan, result)
        try:
            await load.warm_up()
        except AnswerFailedError as error:
            raise NetworkError(f"{target.base_url}: {error}; nothing was measured") from error
        await load.run(on_change)


def _client(base_url: str, headers: dict[str, str], timeout_s: float) -> httpx2.AsyncClient:
    """A client. Raises NetworkError if the proxies or certificates that are set do not exist."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
    try:
        return httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=timeout, limits=limits)
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        raise NetworkError(
            f"the environment names a proxy or certificates that cannot be used ({error}); look at HTTP_PROXY, "
            "HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        ) from error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: Annotated[list[_Model], msgspec.Meta(min_length=1)]


async def _first_model(client: httpx2.AsyncClient, timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.get("/models")
        if response.status_code != HTTPStatus.OK:
            reason = f"HTTP {response.status_code}: {error_message(response.content)}"
            raise NetworkError(f"{response.url}: {reason}; check the URL and the key, or give --model")
        return msgspec.json.decode(response.content, type=_Models).data[0].id
    except TimeoutError as error:
        raise NetworkError(f"{client.base_url} does not say within {timeout_s:g} s which model it has") from error
    except httpx2.HTTPError as error:
        raise NetworkError(f"{client.base_url} cannot be reached ({reason_of(error)}); does it run?") from error
    except NOT_JSON as error:
        raise NetworkError(f"{client.base_url} does not say which model it has; give --model") from error


class _Load:
    """A server and the requests to send to it."""

    def __init__(self, client: httpx2.AsyncClient, endpoint: str, plan: LoadPlan, result: LoadResult) -> None:
        self._client, self._path, self._plan, self._result = client, PATHS[endpoint], plan, result
        self._random, self._words = random.Random(), WORDS.split()  # new prompts in each run, since servers cache them
        self._is_chat = endpoint == "chat"
        self._n_words = plan.prompt_tokens

    async def warm_up(self) -> None:
        """Send two prompts of different lengths, to learn the tokens of a word and of an empty prompt."""
        n_words = (FEW_WORDS, FEW_WORDS + self._plan.prompt_tokens)
        counts = [(await self._ask(self._body(n, WARM_UP_TOKENS))).prompt_tokens for n in n_words]
        if counts[0] is not None and counts[1] is not None and counts[1] > counts[0]:
            per_word = (counts[1] - counts[0]) / self._plan.prompt_tokens
            around = counts[0] - FEW_WORDS * per_word
            wanted = round((self._plan.prompt_tokens - around) / per_word)
            # No word is less than a token; one that cuts long prompts would get ever longer ones.
            self._n_words = min(max(1, wanted), self._plan.prompt_tokens)

    async def run(self, on_change: Callable[[], None]) -> None:
        """Send all requests of the plan."""
        plan = self._plan
        slots = asyncio.Semaphore(plan.concurrency or plan.requests)
        bodies = [self._body(self._n_words, plan.max_tokens) for _ in range(plan.requests)]
        self._result.started = perf_counter()

        async def one(body: dict[str, Any], due: float | None) -> None:
            if due is not None:
                await asyncio.sleep(max(0.0, self._result.started + due - perf_counter()))
            async with slots:
                try:
                    answer = await self._ask(body)
                    if not answer.text_times:
                        raise AnswerFailedError("an answer without text")
                    if due is not None:  # waiting for a slot counts
                        answer.asked = self._result.started + due
                    self._result.answers.append(answer)
                except AnswerFailedError as error:
                    self._result.errors[str(error)] += 1
            on_change()

        async with asyncio.TaskGroup() as tasks:
            for body, due in zip(bodies, self._due_times(), strict=True):
                tasks.create_task(one(body, due))

    def _due_times(self) -> Iterator[float | None]:
        """Seconds after the start when each is due; None: as soon as there is a slot."""
        due = 0.0
        for _ in range(self._plan.requests):
            yield due if self._plan.rate else None
            if self._plan.rate:
                due += self._random.expovariate(self._plan.rate)

    async def _ask(self, body: dict[str, Any]) -> Answer:
        return await ask(self._client, self._path, body, self._plan.timeout_s)

    def _body(self, n_words: int, max_tokens: int) -> dict[str, Any]:
        text = " ".join(self._random.choices(self._words, k=n_words))
        prompt = {"messages": [{"role": "user", "content": text}]} if self._is_chat else {"prompt": text}
        body = {
            "model": self._result.model,
            **prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {**body, "ignore_eos": True} if self._plan.ignore_eos else body
