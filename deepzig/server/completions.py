"""/v1/completions: prompts continued as they are, with echo, log-probabilities, and filling in before a suffix.

Called by `app`; calls `run` through the `Ask` that it makes.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from deepzig.engine.results import GenerationResult, Progress, StreamChunk
from deepzig.engine.sampling import TokenLogprob
from deepzig.server.constraints import completion_constraint
from deepzig.server.failures import ApiError, ErrorBody, blaming
from deepzig.server.logprobs import CompletionScores, joined
from deepzig.server.replies import Completion, CompletionChoice, CompletionLogprobs, FinishReason
from deepzig.server.requests import MAX_PROMPTS, CompletionRequest
from deepzig.server.run import Ask, IsOver
from deepzig.server.sampling_fields import sampling_params
from deepzig.server.served_model import ServedModel
from deepzig.server.usage import prompt_progress, timings_of, usage_of

DEFAULT_MAX_TOKENS = 16  # OpenAI's
_FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")  # noqa: RUF001


def prepare_completion(model: ServedModel, request: CompletionRequest, tenant: str) -> tuple[Ask, "CompletionAnswer"]:
    """What the engine is asked, and the answer that will take its chunks.

    Raises:
        ApiError, RequestError: the request cannot be served.
    """
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise ApiError(400, "best_of is not supported; use n", param="best_of", code="unsupported_parameter")
    if request.logprobs is not None and model.tokenizer is None:
        raise ApiError(400, "logprobs need a tokenizer, which this model lacks", param="logprobs", code="invalid_value")
    with blaming("prompt"):
        prompts = [_read(model, prompt, request.suffix) for prompt in _prompts(request)]
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    params = sampling_params(
        request, model.llm.config.vocab_size, max_tokens=max(max_tokens, 1), logprobs=request.logprobs
    )
    answer = CompletionAnswer(model, request, [_echo(model, request, prompt) for prompt in prompts], params.n)
    ask = Ask(
        prompts=[prompt.ids for prompt in prompts] if max_tokens else [],
        params=params,
        field="prompt",
        compile_constraint=completion_constraint(model, request),
        tenant=tenant,
        priority=request.priority or 0,
        preparation=answer.score_prompts if request.echo and request.logprobs is not None else None,
    )
    return ask, answer


@dataclass(frozen=True)
class _Prompt:
    """Token ids, of which the first n_added were put there by the server."""

    ids: list[int]
    n_added: int = 0


@dataclass
class _Echo:
    """A prompt, as far as the reply shows it."""

    prompt: _Prompt
    text: str = ""
    logprobs: CompletionLogprobs | None = None  # until they are computed, or if they were not asked for


def _echo(model: ServedModel, request: CompletionRequest, prompt: _Prompt) -> _Echo:
    return _Echo(prompt, model.tokenizer.decode(prompt.ids) if request.echo and model.tokenizer is not None else "")


def _prompts(request: CompletionRequest) -> Sequence[str | Sequence[int]]:
    """The prompts of a request: a text, token ids, or a list of either."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]]
    if len(prompt) > MAX_PROMPTS:
        raise ApiError(400, f"there are {len(prompt)} prompts; {MAX_PROMPTS} are allowed", param="prompt")
    mixed = [part for part in prompt if not isinstance(part, int)]
    if len(mixed) != len(prompt) or len({type(part) for part in mixed}) != 1:
        raise ApiError(400, "prompt must be a text, a list of texts, token ids or lists of them", param="prompt")
    return mixed


def _read(model: ServedModel, prompt: str | Sequence[int], suffix: str | None) -> _Prompt:
    if suffix:
        return _fill_in_the_middle(model, prompt, suffix)
    ids = model.llm.encode(prompt).tolist()
    return _Prompt(ids, len(model.tokenizer.own_prefix) if isinstance(prompt, str) and model.tokenizer else 0)


def _fill_in_the_middle(model: ServedModel, prompt: str | Sequence[int], suffix: str) -> _Prompt:
    """<BOS><fim begin>prompt<fim hole>suffix<fim end>, DeepSeek-Coder's order; its marks are in V3's tokenizer too."""
    tokenizer = model.tokenizer
    marks = [tokenizer.control_tokens.ids.get(mark) for mark in _FIM] if tokenizer else [None]
    if tokenizer is None or None in marks or not isinstance(prompt, str):
        raise ApiError(
            400, "suffix needs a model with FIM tokens, and a prompt of text", param="suffix", code="no_fim"
        )
    begin, hole, end = (mark for mark in marks if mark is not None)
    tokenizer.check_room(prompt + suffix, model.llm.prompt_room)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before, after = (tokenizer.encode(text, add_bos=False, allow_special=False) for text in (prompt, suffix))
    return _Prompt([*bos, begin, *before, hole, *after, end], len(bos))


class CompletionAnswer:
    """A completion in the making (see `answer.Answer`)."""

    def __init__(
        self, model: ServedModel, request: CompletionRequest, echoes: Sequence[_Echo], n_choices: int
    ) -> None:
        options = request.stream_options
        self.wants_progress = bool(request.return_progress)
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._with_usage = bool(options and options.include_usage)
        self._n_choices = n_choices
        self._echoes = echoes
        self._n_top = request.logprobs
        with_logprobs = request.logprobs is not None
        self._choices = [_Choice(model, echo, with_logprobs) for echo in echoes for _ in range(n_choices)]
        self._results: list[GenerationResult] = []

    def score_prompts(self, is_over: IsOver) -> None:
        """Compute the log-probabilities of the echoed prompts; between two chunks it may give up."""
        tokenizer = self._model.tokenizer
        assert tokenizer is not None and self._n_top is not None
        for echo in self._echoes:
            ids = echo.prompt.ids
            entries: list[TokenLogprob | int] = [ids[0]]  # the first token has none
            for chunk in self._model.llm.stream_prompt_logprobs(ids, self._n_top):
                if is_over():
                    return
                entries += chunk
            echo.logprobs = CompletionScores(tokenizer).add(entries[echo.prompt.n_added :])

    def start(self) -> Sequence[Completion]:
        """The prompts, if they are to be echoed."""
        return [
            self._event([CompletionChoice(index, choice.echo.text, None, choice.echo.logprobs)])
            for index, choice in enumerate(self._choices)
            if choice.echo.text or choice.echo.logprobs
        ]

    def take(self, prompt: int, chunk: StreamChunk) -> Sequence[Completion]:
        """The text of a chunk."""
        index = prompt * self._n_choices + chunk.index
        if chunk.result is not None:
            self._results.append(chunk.result)
        logprobs = self._choices[index].take(chunk)
        finish_reason = self._choices[index].finish_reason
        if not chunk.text and logprobs is None and finish_reason is None:
            return []
        return [self._event([CompletionChoice(index, chunk.text, finish_reason, logprobs)])]

    def progress(self, progress: Progress, elapsed_s: float) -> Completion:
        """An event without text that tells how far the prompts are."""
        event = self._event([CompletionChoice(0, "")])
        event.prompt_progress = prompt_progress(progress, elapsed_s)
        return event

    def finish(self) -> Sequence[Completion]:
        """The usage, if it was asked for."""
        if not self._with_usage:
            return []
        return [self._with_figures(self._event([]))]

    def whole(self) -> Completion:
        """The reply, if it is not streamed."""
        return self._with_figures(self._event([choice.whole(index) for index, choice in enumerate(self._choices)]))

    def failure(self, error: ApiError) -> ErrorBody:
        """An event with OpenAI's error body, which its clients raise."""
        return error.body

    @property
    def end_reason(self) -> str:
        """The first choice's finish_reason."""
        return self._choices[0].finish_reason or "stop"

    def _with_figures(self, reply: Completion) -> Completion:
        reply.usage = usage_of(self._results)
        if self._results:
            reply.timings = timings_of(self._results)
        else:  # nothing was asked for but the echo
            n_prompt = sum(len(echo.prompt.ids) for echo in self._echoes)
            reply.usage.prompt_tokens = reply.usage.total_tokens = reply.usage.prompt_cache_miss_tokens = n_prompt
        return reply

    def _event(self, choices: list[CompletionChoice]) -> Completion:
        usage = None if self._with_usage else UNSET
        return Completion(self.id, self._created, self._model.id, choices, self._model.fingerprint, usage=usage)


class _Choice:
    """One of the answers so far."""

    def __init__(self, model: ServedModel, echo: _Echo, with_logprobs: bool) -> None:
        self.finish_reason: FinishReason | None = None
        self.echo = echo
        self._texts: list[str] = []
        self._logprobs: list[CompletionLogprobs] = []
        self._scores: CompletionScores | None = None  # if they were asked for
        if with_logprobs and model.tokenizer is not None:
            self._scores = CompletionScores(model.tokenizer, len(echo.text), echo.prompt.ids[-1])

    def take(self, chunk: StreamChunk) -> CompletionLogprobs | None:
        """Add a chunk; its log-probabilities, if they were asked for."""
        self._texts.append(chunk.text)
        if chunk.finish_reason is not None:
            self.finish_reason = "length" if chunk.finish_reason == "length" else "stop"
        if self._scores is None or not chunk.logprobs:
            return None
        self._logprobs.append(self._scores.add(chunk.logprobs))
        return self._logprobs[-1]

    def whole(self, index: int) -> CompletionChoice:
        """The choice, when it has ended; one that was not begun has its length at once."""
        text = self.echo.text + "".join(self._texts)
        echoed = [self.echo.logprobs] if self.echo.logprobs is not None else []
        logprobs = joined([*echoed, *self._logprobs]) if self._scores is not None else None
        return CompletionChoice(index, text, self.finish_reason or "length", logprobs)
