"""Generation: a submitted request as text. Turns the engine's tokens into chunks, in the thread of whoever reads them.

Stop strings are looked for in the engine's thread, so that an answer ends where it should even if nobody reads it yet.
Made by `LLM.submit`; calls `engine_thread` and `text`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deepzig.engine.engine_thread import EngineThread
from deepzig.engine.request import Request, TokenEvent
from deepzig.engine.results import Choice, GenerationResult, Progress, StreamChunk, Timings
from deepzig.engine.sampling import SamplingParams, TokenLogprob
from deepzig.errors import RequestError
from deepzig.text.stop_strings import StopMatcher
from deepzig.text.stream_decoder import StreamDecoder
from deepzig.text.tokenizer import Tokenizer

# A reader that waits is woken at most once in this time: a wake-up takes a core from the kernels (docs/log.md).
WAKE_INTERVAL_S = 0.004


class Generation:
    """A request's answers, as they come. Made by `LLM.submit`.

    Read by one thread at a time, with `poll`, `result` or as an iterator of `StreamChunk`; closing the iterator cancels
    the request.
    """

    def __init__(
        self,
        thread: EngineThread,
        request: Request,
        tokenizer: Tokenizer | None,
        submitted: float,
        owner: object,
        on_update: Callable[[], None] | None = None,
    ) -> None:
        """Submits the request.

        submitted: when it was asked for (time.perf_counter). owner: what closes the thread when nobody holds it.
        """
        self._thread, self._request, self._submitted = thread, request, submitted
        self._owner: object | None = owner
        last = request.branches[0].tokens[-1]  # of the prompt
        self._answers = [_Answer(index, request.params) for index in range(request.params.n)]
        self._texts = [_Text(tokenizer, request.params, last) for _ in self._answers]
        self._pieces: deque[_Piece] = deque()  # of all answers, to be given out
        self._has_stops = bool(request.params.stop)
        self._is_ended = False  # the last chunk, or the error, has been given out
        self._result: GenerationResult | None = None
        self._updated = threading.Event()
        self._woken = 0.0  # when the reader last was
        self._awaits_end = False  # the reader is not interested in single tokens
        self._on_update = on_update
        request.on_update = self._note_update
        thread.submit(request)

    @property
    def is_finished(self) -> bool:
        """Nothing more will come: the last chunk has been read, or the request was cancelled."""
        return self._is_ended

    @property
    def progress(self) -> Progress:
        """How far the request is now."""
        request = self._request
        position = self._thread.queue_position(request)
        return Progress(position, request.n_prompt, request.n_prefilled, request.n_cached)

    @property
    def timings(self) -> Timings | None:
        """Timings of what has been read so far; None until each answer has a token."""
        request = self._request
        if request.started is None or request.first_token is None or not all(each.token_ids for each in self._answers):
            return None
        return Timings(
            prompt_tokens=request.n_prompt,
            cached_tokens=request.n_cached,
            prompt_s=request.first_token - request.started,
            first_token_s=request.first_token - self._submitted,
            decode_tokens=sum(len(answer.token_ids) - 1 for answer in self._answers),
            decode_s=max(answer.last_token for answer in self._answers) - request.first_token,
            drafted_tokens=request.n_drafted,
            accepted_tokens=request.n_accepted,
            speculation_gain=request.plain_s / request.speculation_s if request.speculation_s else None,
        )

    @property
    def n_dropped(self) -> int:
        """Tokens dropped with context_shift, as in `GenerationResult`."""
        return self._request.n_dropped

    def cancel(self) -> None:
        """End the request before the next step; does nothing if it is finished."""
        self._thread.cancel(self._request)

    def poll(self) -> list[StreamChunk]:
        """The chunks that have come since the last call; never blocks.

        Raises:
            NonFiniteLogitsError: the model produced NaN for this request.
            RequestError: the model was closed, the request's constraint cannot be satisfied, or this is a fork of the
                process that computes the rest.
        """
        is_last = self._is_over  # before the pieces are taken: all of them are there then
        if not is_last:
            self._thread.check_process()
        if not self._has_stops:
            self._take_events()
        chunks = []
        while self._pieces:
            chunks.append(self._chunk(self._pieces.popleft()))
        if is_last and not self._is_ended:
            self._end()
            if self._request.error is not None:
                raise self._request.error
        return chunks

    def __iter__(self) -> Iterator[StreamChunk]:
        """Chunks as they come. Closing the iterator cancels the request, as Ctrl-C does. Raises as `poll`."""
        return _Chunks(self)

    def result(self) -> GenerationResult:
        """Wait for the end. Raises as `poll`, and RequestError if the request is cancelled."""
        self._awaits_end = True
        for _ in self:
            pass
        if self._result is None:
            raise self._request.error or RequestError("the request was cancelled")
        return self._result

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until there may be chunks, at most `timeout` seconds; if some came just now, let more gather. Returns
        at once when no more will come."""
        if self._is_ended or self._is_over:
            return
        if self._thread.is_forked:  # where nobody notifies: `poll` has what had come, or refuses
            return
        pause = self._woken + WAKE_INTERVAL_S - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        self._updated.wait(timeout)
        self._updated.clear()
        self._woken = time.perf_counter()

    @property
    def _is_over(self) -> bool:
        """Nothing more will be computed, and all there is can be read."""
        return self._request.is_finished and not (self._has_stops and self._request.events)

    def _note_update(self) -> None:
        """Called by the engine's thread when there is something to read."""
        if self._has_stops:
            self._try(self._find_stops)
        if self._has_news and not self._updated.is_set():
            self._updated.set()
        if self._on_update is not None:
            self._try(self._on_update)
        if self._request.is_finished:
            self._request.on_update = None  # nor should it hold this, which holds the model

    def _try(self, step: Callable[[], None]) -> None:
        """Runs in the engine's thread: an error ends this request, not others nor the thread."""
        try:
            step()
        except BaseException as error:
            self._thread.engine.fail(self._request, error)
            if self._has_stops:
                self._request.events.clear()  # what `_find_stops` has left
            self._updated.set()

    @property
    def _has_news(self) -> bool:
        """The reader wants to know what has come."""
        return not self._awaits_end or self._request.is_finished or all(text.is_ended for text in self._texts)

    def _find_stops(self) -> None:
        """Make pieces of the events, in the engine's thread. Each event stays until its piece is there, see `_is_over`.
        """
        events = self._request.events
        while events:
            self._take([events[0]])
            events.popleft()

    def _take_events(self) -> None:
        """Make pieces of the events, in the reader's thread, if there are no stop strings."""
        events = self._request.events
        while events:
            together = [events.popleft()]
            if self._awaits_end:  # an answer's tokens in one chunk, which nobody sees
                while events and events[0].index == together[0].index:
                    together.append(events.popleft())
            self._take(together)

    def _take(self, events: list[TokenEvent]) -> None:
        """Make a piece of events of one answer, unless that has ended; one event if there are stop strings."""
        text, last = self._texts[events[0].index], events[-1]
        if text.is_ended:
            return
        self._pieces.append(text.take(events))
        if text.is_ended and last.finish_reason is None:  # by a stop string
            self._thread.cancel(self._request, last.index, "stop")

    def _end(self) -> None:
        self._is_ended = True
        self._owner = None

    def _chunk(self, piece: "_Piece") -> StreamChunk:
        events = piece.events
        answer = self._answers[events[0].index]
        answer.add(piece)
        if all(each.is_ended for each in self._answers):
            self._end()
            choices = [each.choice() for each in self._answers]
            timings = self.timings
            assert timings is not None
            self._result = GenerationResult(choices, timings, self.n_dropped)
        logprobs = [event.logprob for event in events if event.logprob is not None] or None
        return StreamChunk(
            piece.text, [event.token for event in events], answer.index, piece.finish_reason, logprobs, self._result
        )


class _Chunks(Iterator[StreamChunk]):
    """The chunks of a generation, from any time on. Closing or dropping it before the end cancels the request; a
    generator would cancel only if it had been started."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._ready: deque[StreamChunk] = deque()
        self._is_closed = False

    def __next__(self) -> StreamChunk:
        while not self._ready:
            if self._is_closed or self._generation.is_finished:
                raise StopIteration
            try:
                self._generation.wait()
                self._ready.extend(self._generation.poll())
            except BaseException:  # as by Ctrl-C: notebooks keep its traceback, which keeps this
                self.close()
                raise
        return self._ready.popleft()

    def close(self) -> None:
        """Cancel the request, if it is not finished; there are no more chunks then."""
        self._is_closed = True
        self._ready.clear()
        if not self._generation.is_finished:
            self._generation.cancel()

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class _Piece:
    """Tokens of an answer and the text that became certain with them."""

    events: list[TokenEvent]
    text: str
    finish_reason: str | None  # these were the answer's last tokens


class _Text:
    """The text of an answer as it comes, decoded and cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, before: int) -> None:
        """before: the token that it follows."""
        self.is_ended = False
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, before=before) if tokenizer is not None else None
        self._stops = StopMatcher(params.stop) if params.stop else None

    def take(self, events: list[TokenEvent]) -> _Piece:
        """Add tokens, one at a time if there are stop strings. With the last token comes all that was held back."""
        reason = events[-1].finish_reason
        text = self._certain(self._decoded([event.token for event in events]))
        if reason is not None and not self._is_stopped:
            text += self._certain(self._decoder.finish() if self._decoder else "")
            if self._stops is not None:
                text += self._stops.flush()
        if self._is_stopped:
            reason = "stop"
        self.is_ended = reason is not None
        return _Piece(events, text, reason)

    @property
    def _is_stopped(self) -> bool:
        """Whether a stop string has ended it."""
        return self._stops is not None and self._stops.hit

    def _certain(self, decoded: str) -> str:
        """Text that begins no stop string and was not given out, now that `decoded` has come."""
        return decoded if self._stops is None else self._stops.push(decoded)

    def _decoded(self, tokens: list[int]) -> str:
        """Text that became whole with the tokens. Rows of the embedding without a token have none."""
        if self._tokenizer is None or self._decoder is None:
            return ""
        return self._decoder.push(*filter(self._tokenizer.has_token, tokens))


class _Answer:
    """A choice as far as it has been read: tokens, text, and how it ended."""

    def __init__(self, index: int, params: SamplingParams) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.last_token = 0.0  # when it was sampled
        self._finish_reason: str | None = None
        self._score: float | None = None
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] | None = [] if params.logprobs is not None else None

    @property
    def is_ended(self) -> bool:
        """Whether it has its last token."""
        return self._finish_reason is not None

    def add(self, piece: _Piece) -> None:
        """Add the next piece of the answer."""
        event = piece.events[-1]
        self.token_ids += [each.token for each in piece.events]
        self.last_token, self._score = event.time, event.score
        if self._logprobs is not None:
            self._logprobs += [each.logprob for each in piece.events if each.logprob is not None]
        self._finish_reason = piece.finish_reason
        if piece.text:
            self._text.append(piece.text)

    def choice(self) -> Choice:
        """The finished answer, as a Choice."""
        assert self._finish_reason is not None
        return Choice(self.index, "".join(self._text), self.token_ids, self._finish_reason, self._logprobs, self._score)
