"""LLM: a loaded model that answers. `submit` queues a request; `generate` waits for it, `stream` yields its chunks.

Made by `loading`; called by users, `cli`, `server` and `evaluate`; calls `prompt_ids`, `generation`, `engine_thread`
and, for sequences that are computed whole, `whole_sequence` and `trace`.
"""

import atexit
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Self, TypeVar

import numpy as np

from deepzig.checkpoint.sizes import ModelSize
from deepzig.engine.defaults import GenerationDefaults
from deepzig.engine.engine import Engine
from deepzig.engine.engine_thread import EngineThread
from deepzig.engine.expert_counter import ExpertCounter
from deepzig.engine.generation import Generation
from deepzig.engine.number_checks import as_integer
from deepzig.engine.prompt_ids import Prompt, encode_prompt
from deepzig.engine.results import EngineStats, GenerationResult, StreamChunk
from deepzig.engine.sampling import SamplingParams, TokenConstraint, TokenLogprob
from deepzig.engine.scheduler import PREFILL_CHUNK
from deepzig.engine.trace import Trace, trace_sequence
from deepzig.engine.whole_sequence import forward_chunks, mtp_chunks, score_sequence
from deepzig.errors import ContextLengthError, DeepzigError, QueueFullError, RequestError
from deepzig.model.deepseek import DeepseekModel
from deepzig.text.chat import ChatTemplate
from deepzig.text.tokenizer import Tokenizer

BATCH_AHEAD = 128  # of a batch's requests are begun before the first is awaited: twice what is decoded together
SHIFTED_CONTEXTS = 16  # prompts may be as many contexts long where context_shift cuts them

T = TypeVar("T")


class LLM:
    """A loaded model. Made by `load`. Calls from several threads are batched by one thread of the model, which forks of
    the process lack: once a model has been used, forks must load their own. A model on several machines can be used
    only in the process that loaded it.

    A prompt is text, which is continued as it is (after a BOS token if the tokenizer says so); or token ids; or a list
    of messages, as in [{"role": "user", "content": "Hello"}], which go through the model's chat template.

    Attributes:
        name: what `load` was given.
        config: a `ModelConfig`.
        tokenizer: a `Tokenizer`; None if the folder has none, then prompts are token ids.
        chat_template: a `ChatTemplate`; None if the folder has none.
        defaults: `GenerationDefaults`, for what `SamplingParams` leave open.
        directory, size, model: its folder, bytes and network; not part of the public interface.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        size: ModelSize,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        defaults: GenerationDefaults,
        engine: Engine,
    ) -> None:
        self.name = name
        self.directory = directory
        self.size = size
        self.config = engine.model.config
        self.tokenizer = tokenizer  # None: token ids still work
        self.chat_template = chat_template
        self.defaults = defaults
        self._n_context, self._shifts_context = engine.n_context, engine.shifts_context
        self._thread = EngineThread(engine, may_fork=engine.model.has_all_layers)
        # at exit, too: before the interpreter takes its objects apart
        self._finalizer = weakref.finalize(self, _close, self._thread)
        # weakref runs all finalizers from one atexit hook, set by the first in the program. So register our own:
        # it must run before libraries imported since, such as Ray, shut down.
        atexit.register(self._finalizer)

    def __repr__(self) -> str:
        return f"<LLM {self.name!r}, {self.config.model_type}, {self.config.num_hidden_layers} layers>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model cannot be copied or pickled; each process loads its own")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def model(self) -> DeepseekModel:
        """Its network. Raises RequestError once it is closed."""
        return self._thread.engine.model

    def close(self) -> None:
        """End the engine's thread; unfinished requests fail, and later ones are refused. Writes the prompt cache, and
        frees the memory.

        The end of a `with` block does this, and so does the end of the program.
        """
        self._finalizer()

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> GenerationResult:
        """Answer a prompt.

        Raises:
            RequestError, ContextLengthError: the prompt or the parameters cannot be served.
            TokenizerError: the chat template fails, or the tokenizer is another model's.
            ResourceError: the process that renders the chat template is killed or cannot be started, or the system
                gives no thread to compute in.
            QueueFullError: too many requests wait.
            NonFiniteLogitsError: the model produced NaN.
        """
        return self.submit(prompt, params).result()

    def generate_batch(self, prompts: Iterable[Prompt], params: SamplingParams | None = None) -> list[GenerationResult]:
        """Answer many prompts, as many at once as the engine decodes together; results are in the order of the prompts.

        If one fails, the others are cancelled. Raises as `generate`, with the index of the prompt in the message.
        """
        if isinstance(prompts, str):
            raise RequestError("prompts is one text; give a list, or use generate")
        results: list[GenerationResult] = []
        begun: deque[Generation] = deque()

        def await_first() -> None:
            with _naming(len(results)):
                results.append(begun.popleft().result())

        try:
            for index, prompt in enumerate(prompts):
                if len(begun) == BATCH_AHEAD:
                    await_first()
                while (generation := self._submit_if_room(index, prompt, params, is_first=not begun)) is None:
                    await_first()
                begun.append(generation)
            while begun:
                await_first()
        finally:
            for generation in begun:
                generation.cancel()
        return results

    def _submit_if_room(
        self, index: int, prompt: Prompt, params: SamplingParams | None, *, is_first: bool
    ) -> Generation | None:
        """Submit a request; None if others fill the queue, while one that was begun before this one will end."""
        try:
            with _naming(index):
                return self.submit(prompt, params)
        except QueueFullError:
            if is_first:
                raise
            return None

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Answer a prompt in chunks: the texts of a choice's chunks make up its text, and the last chunk has the
        result.

        Closing the iterator cancels the request. Raises as `generate`.
        """
        return iter(self.submit(prompt, params))

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        priority: int = 0,
        constraint: TokenConstraint | None = None,
        on_update: Callable[[], None] | None = None,
    ) -> Generation:
        """Queue a request and return at once.

        Args:
            prompt, params: as `generate`.
            tenant: requests find prefixes of requests of the same tenant only.
            priority: higher ones are served first, and make running ones wait; equal ones in order of arrival.
            constraint: which tokens may follow; belongs to this request from now on.
            on_update: called from the engine's thread after new tokens, progress or the end; must not block.

        Raises:
            RequestError, ContextLengthError: the prompt or the parameters cannot be served.
            TokenizerError: the chat template fails, or the tokenizer is another model's.
            ResourceError: the process that renders the chat template is killed or cannot be started, or the system
                gives no thread to compute in.
            QueueFullError: too many requests wait.
        """
        submitted = time.perf_counter()
        if not isinstance(params, SamplingParams | None):
            raise RequestError(f"params is a {type(params).__name__}; use deepzig.SamplingParams(max_tokens=...)")
        prompt_ids = self.encode(prompt)
        resolved = self.defaults.resolve(params or SamplingParams())
        if resolved.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, which this model folder lacks")
        request = self._thread.engine.make_request(
            prompt_ids,
            resolved,
            self.defaults.eos_token_ids,
            tenant=tenant,
            priority=priority,
            constraint=constraint,
        )
        return Generation(self._thread, request, self.tokenizer, submitted, self, on_update)

    @property
    def n_context(self) -> int:
        """Tokens that a prompt and its answer may have together: the model's context, or fewer in a small cache."""
        return self._n_context

    @property
    def prompt_room(self) -> int:
        """Tokens that a text may have: the model's context, with context_shift 16 times as many."""
        return self.config.max_position_embeddings * (SHIFTED_CONTEXTS if self._shifts_context else 1)

    def stats(self) -> EngineStats:
        """Counts of requests, pages and tokens so far; waits for the end of a step that is going on."""
        return self._thread.stats()

    @property
    def last_stats(self) -> EngineStats:
        """Counts as of the end of the last step, without waiting."""
        return self._thread.last_stats

    def count_experts(self) -> ExpertCounter:
        """Count from now on how often each expert is chosen, over all requests. An earlier count ends. `logits`,
        `prompt_logprobs` and `trace` are no requests: a trace has its own `expert_load`.

        Raises:
            RequestError: some layers are on other machines.
        """
        self._check_layers()
        counter = ExpertCounter(self.config)
        self._thread.engine.observer = counter.observe
        return counter

    def encode(self, prompt: Prompt) -> np.ndarray:
        """Token ids i32 (S,) of a prompt, checked against the vocabulary and the context.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or needs a tokenizer or template that the
                model lacks.
            ContextLengthError: it is longer than the context, or a text too long to have no more than `prompt_room`
                tokens.
            TokenizerError: the chat template fails, or the tokenizer is another model's.
            ResourceError: the process that renders the chat template is killed, or cannot be started.
        """
        token_ids = self._encode(prompt, self.prompt_room)
        if len(token_ids) >= self.config.max_position_embeddings and not self._shifts_context:
            room = self.config.max_position_embeddings
            raise ContextLengthError(
                f"the prompt is too long: it has {len(token_ids)} tokens, but the context holds {room}, one of them "
                "for the answer; cut it"
            )
        return token_ids

    def logits(
        self, token_ids: Prompt, *, chunk_size: int = PREFILL_CHUNK, attention: str | None = None
    ) -> np.ndarray:
        """Run the whole model: f32 (T, vocab_size), row t predicting token t + 1. Other requests go on between its
        chunks.

        Args:
            token_ids: T of them; a text or messages stand for theirs. More than the context are a UserWarning: the
                model has not learned positions beyond.
            chunk_size: tokens that go through the layers at a time.
            attention: "absorbed" or "expanded" to force one form; None picks the cheaper.

        Raises:
            RequestError: there are no token ids, or an argument is outside what it may be; a text needs a tokenizer or
                template that the model lacks.
        """
        if attention not in (None, "absorbed", "expanded"):
            raise RequestError(f"attention {attention!r} is unknown; use absorbed or expanded")
        chunk_size = as_integer("chunk_size", chunk_size, least=1)
        ids = self._encode_whole(token_ids)
        chunks = forward_chunks(
            self.model, ids, self.model.make_cache(len(ids)), chunk_size=chunk_size, form=attention
        )
        return np.concatenate(list(self._one_by_one(self.model.logits(hidden) for hidden in chunks)))

    def prompt_logprobs(self, token_ids: Prompt, n_top: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of the tokens of a sequence after the first, each given those before it, and of the n_top
        likeliest tokens in each place. Other requests go on between its chunks.

        Args:
            token_ids: as in `logits`.
            n_top: from 0.

        Raises:
            RequestError: there are no token ids, or they are outside the vocabulary.
            NonFiniteLogitsError: the model produced NaN.
        """
        return [entry for chunk in self.stream_prompt_logprobs(token_ids, n_top) for entry in chunk]

    def stream_prompt_logprobs(self, token_ids: Prompt, n_top: int = 0) -> Iterator[list[TokenLogprob]]:
        """Log-probabilities as from `prompt_logprobs`, chunk by chunk, each computed when it is asked for. Raises as
        that does."""
        n_top = as_integer("n_top", n_top, least=0)
        ids = self._encode_whole(token_ids)
        yield from self._one_by_one(score_sequence(self.model, ids, self.model.make_cache(len(ids)), n_top))

    def mtp_logits(self, token_ids: Prompt) -> np.ndarray:
        """Run the first MTP layer over a whole sequence of T tokens: f32 (T - 1, vocab_size), row t predicting token t
        + 2. Other requests go on between its chunks. token_ids as in `logits`.

        Raises:
            RequestError: the checkpoint has no MTP layer, there are no token ids, or they are outside the vocabulary.
        """
        if not self.model.mtp_layers:
            raise RequestError("this checkpoint has no MTP layer")
        ids = self._encode_whole(token_ids)
        chunks = self._one_by_one(mtp_chunks(self.model, ids, self.model.make_cache(len(ids))))
        return np.concatenate([np.empty((0, self.config.vocab_size), np.float32), *chunks])

    def trace(self, prompt: Prompt) -> Trace:
        """Record what every layer does with a text, in one chunk: hidden states and norms, router choices, expert load.
        Other requests wait until it is done, and Ctrl-C does not end it. prompt as in `logits`.

        Raises:
            RequestError: as `logits`; some layers are on other machines.
        """
        self._check_layers()
        ids = self._encode_whole(prompt)
        return self._thread.call(lambda: trace_sequence(self.model, ids))

    def _one_by_one(self, items: Iterator[T]) -> Iterator[T]:
        """Items that the engine's thread computes, each when it is asked for. Between them the thread does other work,
        and an interrupted caller asks for no more."""
        while (item := self._thread.call(lambda: next(items, None))) is not None:
            yield item

    def _check_layers(self) -> None:
        if not self.model.has_all_layers:
            raise RequestError("layers on other machines cannot be observed; load the model on one")

    def _encode_whole(self, prompt: Prompt) -> np.ndarray:
        """Token ids i32 (S,) of a sequence that is computed whole, however long it is."""
        ids, n_trained = self._encode(prompt), self.config.max_position_embeddings
        if len(ids) > n_trained:
            warnings.warn(
                f"the sequence has {len(ids)} tokens, but the context holds {n_trained}: results beyond mean little",
                UserWarning,
                stacklevel=3,
            )
        return ids

    def _encode(self, prompt: Prompt, room: int | None = None) -> np.ndarray:
        return encode_prompt(prompt, self.tokenizer, self.chat_template, self.config.vocab_size, room)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors say which prompt of a batch they are about; a queue that is full is about none."""
    try:
        yield
    except QueueFullError:
        raise
    except DeepzigError as error:
        raise type(error)(f"prompts[{index}]: {error}") from error


def _close(thread: EngineThread) -> None:
    if thread.is_forked:
        return
    engine = thread.engine
    thread.close()
    try:
        engine.save_prompt_cache()
    finally:
        engine.forget_prefixes()  # nodes of the tree hold each other
        engine.model.close()
