"""SamplingParams, what a request may ask for, and Sampler, which turns logits into tokens for one branch of a request.

Made by `engine`; called by `step_sampling`, `drafting`, `beams`, `logit_rows`, `whole_sequence` and
`evaluate.perplexity`; calls `_kernels.top_tokens`. Knows logits and token ids, nothing of text or of the model.
"""

import functools
import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from deepzig import _kernels
from deepzig.engine.number_checks import as_integer, as_number
from deepzig.errors import NonFiniteLogitsError, RequestError

SPECULATIONS = ("auto", "off", "mtp", "ngram")
MAX_DRAFT_TOKENS = 8
MAX_TEMPERATURE = 1e6
MAX_BIAS = 1e12  # what may be added to a logit: float32 holds it, even divided by the least temperature
_LEAST = {"top_k": 0, "seed": 0, "logprobs": 0, "max_tokens": 1, "n": 1, "draft_tokens": 1, "num_beams": 1}
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, MAX_TEMPERATURE),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-MAX_BIAS, MAX_BIAS),
    "frequency_penalty": (-MAX_BIAS, MAX_BIAS),
    "length_penalty": (-20, 20),
}
_OPTIONAL = {"temperature", "top_p", "top_k", "seed", "logprobs"}  # may be None


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    temperature, top_p and top_k: None takes the model's generation_config.json, else 1.0, 1.0 and off. The order is
    penalties, logit_bias, temperature, top_k, top_p, min_p (HF generation/logits_process.py).

    Raises:
        RequestError: when made with values it cannot mean.
    """

    max_tokens: int = 256  # most tokens of an answer, at least 1
    temperature: float | None = None  # from 0; below 1e-4 the likeliest token is taken always
    top_k: int | None = None  # draw among the k likeliest tokens; 0: among all
    top_p: float | None = None  # draw among the likeliest tokens that have this probability together; in [0, 1]
    min_p: float = 0.0  # leave out tokens with less than this share of the likeliest one's probability; in [0, 1]
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt and answer, multiplies negative ones
    presence_penalty: float = 0.0  # taken from the logits of tokens in the answer
    frequency_penalty: float = 0.0  # taken from the logits of tokens in the answer, times their count
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its logit
    seed: int | None = None  # from 0; the same seed gives the same answer. None: another one each time
    stop: Sequence[str] = ()  # the answer ends before the first of these texts
    stop_token_ids: Collection[int] = ()  # the answer ends with the first of these tokens, ignore_eos or not
    ignore_eos: bool = False  # go on past the end-of-sequence token
    logprobs: int | None = None  # report log-probabilities, with this number of likeliest tokens. None: do not
    speculation: str = "auto"  # speculative decoding, which changes speed alone: auto, off, mtp or ngram
    draft_tokens: int = 3  # draft tokens at once; auto makes fewer where that is faster
    n: int = 1  # answers to the same prompt; in a beam search the best n
    num_beams: int = 1  # above 1: beam search without sampling: temperature, top_k, top_p, min_p play no part
    length_penalty: float = 1.0  # a beam's score is its log-probability / length ** length_penalty
    early_stopping: bool | str = False  # end a beam search: True, with num_beams answers; False, when better ones are
    # unlikely; "never", when they are impossible (HF GenerationConfig)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self._set("stop", (self.stop,))
        for name, fewest in _LEAST.items():
            if self._is_given(name):
                self._set(name, as_integer(name, getattr(self, name), least=fewest))
        for name, (least, greatest) in _RANGES.items():
            if self._is_given(name):
                self._set(name, as_number(name, getattr(self, name), least, greatest))
        if self.draft_tokens > MAX_DRAFT_TOKENS:
            raise RequestError(f"draft_tokens {self.draft_tokens} is above {MAX_DRAFT_TOKENS}")
        if self.speculation not in SPECULATIONS:
            raise RequestError(f"speculation {self.speculation!r} is unknown; use {', '.join(SPECULATIONS)}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise RequestError(f"early_stopping {self.early_stopping!r} is unknown; use True, False or 'never'")
        if self.num_beams > 1 and self.n > self.num_beams:
            raise RequestError(f"n {self.n} is above num_beams {self.num_beams}, which finds no more answers than that")
        if not isinstance(self.stop, Sequence) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise RequestError("stop must be non-empty strings")
        if not isinstance(self.stop_token_ids, Collection) or getattr(self.stop_token_ids, "ndim", 1) != 1:
            raise RequestError(f"stop_token_ids {self.stop_token_ids!r} are no list of token ids")
        stop_ids = tuple(as_integer("a token of stop_token_ids", token, least=0) for token in self.stop_token_ids)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError("logit_bias must have a number for each token id")
        bias = {
            as_integer("a token of logit_bias", token, least=0): as_number(
                "a value of logit_bias", number, -MAX_BIAS, MAX_BIAS
            )
            for token, number in self.logit_bias.items()
        }
        # copies: requests read them again, when the caller may have changed its own
        self._set("stop", tuple(self.stop))
        self._set("stop_token_ids", stop_ids)
        self._set("logit_bias", bias)

    def _is_given(self, name: str) -> bool:
        """Whether a parameter has a value; False if it is None, and may be."""
        return getattr(self, name) is not None or name not in _OPTIONAL

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token with its log-probability under the model's own distribution, and the most likely tokens."""

    token_id: int  # the chosen token
    logprob: float  # natural logarithm
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), most likely first


class TokenConstraint(Protocol):
    """Which tokens may follow: a grammar, a schema. Implemented above the engine, used by one branch each."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the answer ends here."""
        ...

    def allowed(self) -> np.ndarray:
        """Tokens that may come next, as bool (vocab_size,); end-of-sequence tokens where the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """Note that the token has been chosen; never an end-of-sequence token."""
        ...

    def copy(self) -> Self:
        """An independent constraint in the same state."""
        ...


def token_logprob(logits: np.ndarray, token: int, n_top: int) -> TokenLogprob:
    """The log-probability of a token and of the n_top likeliest, from logits f32 (vocab_size,)."""
    return token_logprobs(logits, [token], n_top)[token]


def token_logprobs(logits: np.ndarray, tokens: Iterable[int], n_top: int) -> dict[int, TokenLogprob]:
    """Log-probabilities as of `token_logprob`, for several tokens in one place."""
    logprobs = log_softmax(logits)
    n_top = min(n_top, len(logits))
    likeliest = np.argpartition(-logprobs, n_top - 1)[:n_top] if n_top else np.empty(0, np.int64)
    likeliest = likeliest[np.lexsort((likeliest, -logprobs[likeliest]))]
    top = tuple((int(i), float(logprobs[i])) for i in likeliest)
    return {token: TokenLogprob(token, float(logprobs[token]), top) for token in tokens}


class Sampler:
    """Samples the tokens of one branch; remembers them for the penalties."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        vocab_size: int,
        constraint: TokenConstraint | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """params.temperature, top_k and top_p must be numbers by now. eos_token_ids: the model's, with which a
        constraint may end even where params ignore them; `end_token_ids` are those that end the answer."""
        self._params = params
        self._vocab_size = vocab_size
        self._constraint = constraint
        self._eos_token_ids = eos_token_ids
        self.end_token_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids)
        self._seed = np.random.SeedSequence(params.seed)
        self._uniforms: deque[float] = deque()  # drawn ahead: the next tokens' random numbers, one a token
        self._counts = self._seen = np.empty(0, np.int32)  # without penalties nothing is counted
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._has_penalties = penalties != (1, 0, 0)
        if self._has_penalties:
            self._counts = np.zeros(vocab_size, np.int32)  # of each token in the answer
            self._seen = np.zeros(vocab_size, bool)  # tokens of prompt and answer
            self._seen[np.asarray(prompt_ids, np.int64)] = True
        n_drawn = 0 if params.temperature == 0 else vocab_size
        self._candidates = np.empty(n_drawn, np.int32)
        self._probs = np.empty(n_drawn, np.float32)
        for field_name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in tokens:
                if token >= vocab_size:
                    raise RequestError(f"{field_name} names token {token}, but the vocabulary has {vocab_size}")
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        # `sample` would take the argmax of the logits as they are: the engine may take that of all sequences at once
        leaves_logits = constraint is None and not self._has_penalties and not params.logit_bias
        self.is_greedy = params.temperature == 0 and leaves_logits

    @functools.cached_property
    def _random(self) -> np.random.Generator:
        """The random number generator. Made by the first draw: greedy answers have none."""
        return np.random.default_rng(self._seed)

    @property
    def is_complete(self) -> bool:
        """Whether its constraint allows nothing more."""
        return self._constraint is not None and self._constraint.is_complete

    def fork(self, index: int) -> "Sampler":
        """A sampler for branch `index`, before anything has been sampled, with random numbers of its own."""
        fork = self.copy()
        if self._params.seed is not None:
            fork._seed = np.random.SeedSequence(self._params.seed, spawn_key=(index,))
        return fork

    def copy(self) -> "Sampler":
        """An independent sampler in the same state, without its random numbers."""
        constraint = None if self._constraint is None else self._constraint.copy()
        copy = Sampler(self._params, (), self._vocab_size, constraint, self._eos_token_ids)
        copy._seen, copy._counts = self._seen.copy(), self._counts.copy()
        return copy

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """logits f32 (vocab_size,) -> log-probabilities f32 (vocab_size,) after penalties and bias, for a beam search.

        Raises:
            NonFiniteLogitsError: the greatest logit is NaN or infinite.
        """
        check_finite(float(logits.max()))
        return self._adjusted(log_softmax(logits))

    def sample(self, logits: np.ndarray) -> int:
        """logits f32 (vocab_size,) -> the next token.

        Raises:
            NonFiniteLogitsError: the greatest logit is NaN or infinite.
            RequestError: the constraint allows no token.
        """
        adjusted = self._adjusted(self._constrained(logits))
        best = int(np.argmax(adjusted))
        check_finite(adjusted[best])
        token = best
        if self._params.temperature != 0:
            token = self._draw(adjusted, self._uniform(0))
            self._uniforms.popleft()
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Remember a token that has been sampled."""
        if self._has_penalties:
            self._counts[token] += 1
            self._seen[token] = True
        if self._constraint is not None and token not in self.end_token_ids:
            self._constraint.accept(token)

    def draft(self, logits: np.ndarray, depth: int) -> int:
        """The token that `sample` would take from a drafter's logits f32 (vocab_size,) after `depth` other calls.

        With the same random number, a drafter whose distribution is close draws the same token. The draws of `sample`
        do not depend on drafts, so a seed gives the same tokens with and without speculation.
        """
        adjusted = self._adjusted(logits)
        best = int(np.argmax(adjusted))
        if self._params.temperature == 0 or not math.isfinite(adjusted[best]):
            return best
        return self._draw(adjusted, self._uniform(depth))

    def logprob(self, logits: np.ndarray, token: int) -> TokenLogprob:
        """Log-probabilities from logits f32 (vocab_size,), before penalties and temperature."""
        return token_logprob(logits, token, self._params.logprobs or 0)

    def _constrained(self, logits: np.ndarray) -> np.ndarray:
        """Logits with -inf for what the constraint forbids: the same array when there is none."""
        if self._constraint is None:
            return logits
        allowed = self._constraint.allowed()
        if not allowed.any():
            raise RequestError("the constraint allows no token here; the schema or grammar cannot be satisfied")
        if self._params.stop_token_ids and self._may_end(allowed):
            allowed = allowed.copy()  # the answer may end here, so it may by any token that ends it
            allowed[list(self._params.stop_token_ids)] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def _may_end(self, allowed: np.ndarray) -> bool:
        """Whether allowed bool (vocab_size,) has an end-of-sequence token."""
        return any(token < self._vocab_size and allowed[token] for token in self._eos_token_ids)

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        """Logits after penalties and bias: the same array when there are none."""
        params = self._params
        if params.repetition_penalty != 1:
            factor = np.float32(params.repetition_penalty)
            logits = np.where(self._seen, np.where(logits > 0, logits / factor, logits * factor), logits)
        if params.presence_penalty or params.frequency_penalty:
            penalty = params.presence_penalty * (self._counts > 0) + params.frequency_penalty * self._counts
            logits = logits - penalty.astype(np.float32)
        if len(self._bias_ids):
            logits = logits.copy()
            logits[self._bias_ids] += self._bias
        return logits

    def _uniform(self, ahead: int) -> float:
        """The random number in [0, 1) of the token that is sampled after `ahead` others."""
        while len(self._uniforms) <= ahead:
            self._uniforms.append(self._random.random())
        return self._uniforms[ahead]

    def _draw(self, logits: np.ndarray, uniform: float) -> int:
        """The token at `uniform` in the tempered and truncated distribution."""
        params = self._params
        assert params.temperature is not None and params.top_p is not None  # resolved when the request was accepted
        _kernels.top_tokens(
            logits,
            params.temperature,
            min(params.top_k or 0, self._vocab_size),
            params.top_p,
            params.min_p,
            self._candidates,
            self._probs,
            n_threads=1,
        )
        cumulative = np.cumsum(self._probs, dtype=np.float64)  # flat after the kept ones, which no draw reaches
        return int(self._candidates[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities f32 (..., vocab_size) of logits f32 (..., vocab_size)."""
    shifted: np.ndarray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def check_finite(logit: float) -> None:
    """Raise NonFiniteLogitsError if a logit is NaN or infinite; the greatest, as argmax finds it, speaks for a row."""
    if not math.isfinite(logit):
        raise NonFiniteLogitsError("a model gave NaN or infinite logits; look at its files with `deepzig verify`")
