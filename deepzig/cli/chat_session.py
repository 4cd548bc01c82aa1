"""ChatSession: a conversation with a model: its turns, their prompt, and the answer as it comes.

Called by `chat`, `chat_commands` and `chat_output`; calls `LLM.submit`, the chat template and `AnswerParser`. Knows
nothing of terminals, commands or files.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deepzig.engine.generation import Generation
from deepzig.engine.llm import LLM
from deepzig.engine.results import Progress, Timings
from deepzig.engine.sampling import SamplingParams
from deepzig.errors import ContextLengthError, RequestError
from deepzig.text.answer_format import AnswerFormat
from deepzig.text.answer_parser import AnswerParser, Content, Part, Reasoning
from deepzig.text.chat import ChatTemplate, thinking_variables
from deepzig.text.resumed_tokens import resumed

POLL_INTERVAL_S = 0.1  # how long stopping may take at most
PASSAGE_TOKENS = SamplingParams().max_tokens  # of a story, after which the user decides how it goes on

Event = Progress | Part
Events = Generator[Event, None, None]


@dataclass
class Turn:
    """A message of the user and the answer of the model."""

    message: str
    answer: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class AnswerReport:
    """What an answer cost and how it ended."""

    timings: Timings
    n_tokens: int
    n_dropped: int
    end: str  # "stop", "length", or "stopped" by the user


@dataclass
class Totals:
    """Counts and times of all answers of a session."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0

    def add(self, report: AnswerReport) -> None:
        """Count an answer."""
        self.answers += 1
        self.prompt_tokens += report.timings.prompt_tokens
        self.cached_tokens += report.timings.cached_tokens
        self.answer_tokens += report.n_tokens


@dataclass
class _Answering:
    """An answer that is being generated."""

    generation: Generation
    parser: AnswerParser
    n_tokens: int = 0
    end: str = "stopped"

    def take(self) -> tuple[list[Part], list[int]]:
        """Take the parts and tokens that have come. Raises as `Generation.poll`."""
        chunks = self.generation.poll()
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        self.n_tokens += len(tokens)
        if chunks and chunks[-1].finish_reason is not None:
            self.end = chunks[-1].finish_reason
        return self.parser.push("".join(chunk.text for chunk in chunks), tokens), tokens

    def report(self) -> AnswerReport | None:
        """The report on the answer; None if it has no token."""
        timings = self.generation.timings
        if timings is None:
            return None
        return AnswerReport(timings, self.n_tokens, self.generation.n_dropped, self.end)


class ChatSession:
    """A conversation. If the model can only continue text, it is a story: one text, written in turns.

    Raises RequestError if the model has no tokenizer.
    """

    def __init__(self, llm: LLM) -> None:
        if llm.tokenizer is None:
            raise RequestError("this model folder has no tokenizer, so it cannot chat; fetch its tokenizer files")
        self.llm = llm
        self.turns: list[Turn] = []
        self.unanswered: str | None = None  # the last message, if no answer came
        self.report: AnswerReport | None = None  # of the last answer, if a token came
        self.totals = Totals()
        self.params = self.defaults
        self._tokenizer = llm.tokenizer
        self._system: str | None = None
        self._thinking: bool | None = None
        self._known: list[int] = []  # tokens that the model read and said last
        self._is_stopped = False

    # ---- what the model is

    @cached_property
    def is_story(self) -> bool:
        """Whether the model knows no roles."""
        return self.llm.chat_template is None or not self.llm.chat_template.tells_roles()

    @cached_property
    def defaults(self) -> SamplingParams:
        """Parameters that nobody has set."""
        return SamplingParams(max_tokens=PASSAGE_TOKENS if self.is_story else self.llm.n_context)

    @cached_property
    def switches_thinking(self) -> bool:
        """Whether thinking can be switched on and off."""
        return not self.is_story and self._template.switches_thinking()

    @property
    def name(self) -> str:
        """Name of the model, without the folders above it."""
        return Path(self.llm.name).name or self.llm.name

    # ---- what the user sets

    @property
    def system(self) -> str | None:
        """The system message. Setting it raises RequestError in a story."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None and self.is_story:
            raise RequestError(f"{self.name} only goes on with texts, so it has no system message")
        self._system = text

    @property
    def thinking(self) -> bool | None:
        """Whether to think; None: as the template decides. Setting it raises RequestError if there is no choice."""
        return self._thinking

    @thinking.setter
    def thinking(self, is_on: bool | None) -> None:
        if is_on is not None and not self.switches_thinking:
            raise RequestError(f"the chat template of {self.name} has no switch for thinking")
        self._thinking = is_on

    # ---- the conversation

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages in OpenAI's form."""
        return self._messages(self.turns)

    def replace_conversation(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Replace all that was said by messages, checked by `chat_file`."""
        system = next((message["content"] for message in messages if message["role"] == "system"), None)
        self.system = system
        self.clear()
        for message in messages:
            if message["role"] == "user":
                self.turns.append(Turn(message["content"]))
            elif message["role"] == "assistant":
                self.turns[-1].answer = message["content"]
                self.turns[-1].reasoning = message.get("reasoning_content", "")
        if messages and messages[-1]["role"] == "user":
            self.unanswered = self.turns.pop().message

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        self.turns, self.unanswered, self.report = [], None, None

    def undo(self, n_turns: int = 1) -> list[Turn]:
        """Take back the last turns and return them. Raises RequestError if there are fewer."""
        if n_turns > len(self.turns):
            raise RequestError(f"turns to take back: {len(self.turns)}" if self.turns else "nothing was said yet")
        taken = self.turns[-n_turns:]
        del self.turns[-n_turns:]
        return taken

    def ask(self, message: str) -> Events:
        """Answer a message, piece by piece; before the first piece come reports on the progress of the prompt.

        When the answer ends, is stopped or fails, the turn is kept with the part that came. If nothing came, the turn
        is dropped, and `unanswered` has the message. Raises as `LLM.submit` and `Generation.poll`.
        """
        self._is_stopped, self.report = False, None
        turn = Turn(self._set_off(message) if self.is_story else message.strip())
        self.unanswered = turn.message
        ids = self._prompt([*self.turns, turn])
        answering = _Answering(self._submit(ids), AnswerParser.after(ids, self._format, self._tokenizer))
        self._known = list(ids)
        try:
            for event in self._events(answering):
                if isinstance(event, Content):
                    turn.answer += event.text
                elif isinstance(event, Reasoning):
                    turn.reasoning += event.text
                yield event
        finally:
            answering.generation.cancel()
            if turn.answer or answering.end == "stop":
                self.turns.append(turn)
                self.unanswered = None
            if report := answering.report():
                self.report = report
                self.totals.add(report)

    def retry(self) -> Events:
        """Answer the last message again; the old answer stays if no other comes. Raises RequestError without one."""
        if self.unanswered is not None:
            yield from self.ask(self.unanswered)
            return
        (old,) = self.undo()
        try:
            yield from self.ask(old.message)
        finally:
            if self.unanswered is not None:
                self.turns.append(old)
                self.unanswered = None

    def stop(self) -> None:
        """End the current answer and do nothing else, so that a signal handler may call it."""
        self._is_stopped = True

    @property
    def n_used(self) -> int:
        """Tokens of the context that the last prompt and its answer fill."""
        if self.report is None:
            return 0
        return min(self.report.timings.prompt_tokens + self.report.n_tokens, self.llm.n_context)

    # ---- prompts and answers

    @property
    def _template(self) -> ChatTemplate:
        assert self.llm.chat_template is not None
        return self.llm.chat_template

    @cached_property
    def _format(self) -> AnswerFormat:
        return AnswerFormat.of_template(None if self.is_story else self._template.source)

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            answer = {"role": "assistant", "content": turn.answer}
            messages.append({**answer, "reasoning_content": turn.reasoning} if turn.reasoning else answer)
        return messages

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids. Text that the model has read or said keeps its tokens."""
        if self.is_story:
            text = "".join(turn.message + turn.answer for turn in turns)
            ids = self._tokenizer.encode(text, allow_special=False)
        else:
            variables: dict[str, Any] = {} if self.thinking is None else thinking_variables(self.thinking)
            ids = self._template.render_tokens(self._messages(turns)[:-1], self._tokenizer, **variables)
        return resumed(ids, self._known, self._tokenizer)

    def _submit(self, ids: list[int]) -> Generation:
        try:
            return self.llm.submit(ids, self.params)
        except ContextLengthError as error:
            raise ContextLengthError(
                f"with this message the conversation has {len(ids)} tokens, but there is room for {self.llm.n_context}"
            ) from error

    def _events(self, answering: _Answering) -> Events:
        while not answering.generation.is_finished and not self._is_stopped:
            answering.generation.wait(POLL_INTERVAL_S)
            parts, tokens = answering.take()
            self._known += tokens
            yield from parts
            if answering.n_tokens == 0:
                yield answering.generation.progress
        yield from answering.parser.finish()

    def _set_off(self, words: str) -> str:
        """The user's part of a story, after a blank unless there is one or a mark begins it; "" for blanks alone."""
        if not words.strip():
            return ""
        before = self.turns[-1].message + self.turns[-1].answer if self.turns else ""
        needs_blank = before and not before[-1].isspace() and (words[0].isalnum() or words[0] in '"“(')
        return f" {words}" if needs_blank else words
