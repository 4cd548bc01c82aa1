"""AnswerParser: splits an answer, while it streams, into reasoning, content and tool calls.

Called by `server`, `llm_plugin` and the chat in the terminal with each token and its text; calls `marked_text`. A mark
counts where the model wrote its token; text that spells it, such as a quote, is text. Arguments are passed on as
written, whether or not they are JSON.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Self

from deepzig.text.answer_format import THINK_CLOSE, THINK_OPEN, AnswerFormat, ToolFormat
from deepzig.text.marked_text import MarkedText, plain
from deepzig.text.marker_scanner import MarkerScanner
from deepzig.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reasoning:
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer proper."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The model calls a function; its arguments follow."""

    index: int
    name: str
    id: str | None = None  # the model's own; None: it gives none


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, JSON as the model wrote it."""

    index: int
    text: str


Part = Reasoning | Content | CallStart | CallArguments
_NUMBER = re.compile(r":\d+$")


class _State(Enum):
    OPENING = auto()  # nothing but whitespace yet: <think> may come
    REASONING = auto()
    CONTENT = auto()
    BETWEEN_CALLS = auto()
    NAME = auto()
    ARGUMENTS = auto()


class AnswerParser:
    """The concatenation of all parts is the same however the text is cut into pieces.

    Line breaks around the reasoning are dropped, as DeepSeek's API does. If no call can be recognised in a section of
    calls it is handed on as content, so that nothing the model wrote is lost; unless the answer was cut off within it,
    where a call may have been about to come. Models forget marks: a call also begins without a section, and ends with
    the section, where the next one begins, or, if its arguments are whole, with the answer. Text after the calls of a
    section that is never closed is content, and so is the mark of a call without a section if no name follows.
    """

    def __init__(
        self,
        answer_format: AnswerFormat,
        marked_text: MarkedText | None = None,
        *,
        in_reasoning: bool = False,
        may_open_reasoning: bool = True,
        with_tools: bool = False,
    ) -> None:
        """marked_text: of the answer; None: marks are found as text. in_reasoning: the prompt ends within an open
        <think>. may_open_reasoning: if it does not, the answer may begin with one. with_tools: look for calls.
        """
        self._marked_text = marked_text
        self._think_open, self._think_close = self._spelling(THINK_OPEN), self._spelling(THINK_CLOSE)
        tools = answer_format.tools if with_tools else None
        self._tools: ToolFormat | None = None if tools is None else tools.spelled(self._spelling)
        self._call_marks = (self._tools.section_open, self._tools.call_open) if self._tools else ()
        self._marks_after_reasoning = self._call_marks[:1] if self._tools and self._tools.ends_reasoning else ()
        self._has_thinking = answer_format.has_thinking
        self._scanner = MarkerScanner()
        self._state = _State.CONTENT
        if self._has_thinking and (in_reasoning or may_open_reasoning):
            self._state = _State.REASONING if in_reasoning else _State.OPENING
        self._newlines = ""  # held back at the end of reasoning
        self._at_start = self._state is not _State.CONTENT  # of reasoning, or of content after it
        self._raw = ""  # of a section without a call so far
        self._arguments: list[str] = []  # of the last call
        self._n_calls_before = 0  # the section
        self._has_section = False  # around the call, if in one
        self.n_calls = 0

    @classmethod
    def after(cls, prompt: Sequence[int], answer_format: AnswerFormat, tokenizer: Tokenizer) -> Self:
        """For an answer to these tokens, without calls."""
        return cls(
            answer_format,
            MarkedText(tokenizer, prompt),
            in_reasoning=answer_format.ends_in_reasoning(prompt, tokenizer),
            may_open_reasoning=answer_format.may_open_reasoning(prompt, tokenizer),
        )

    def _spelling(self, mark: str) -> str:
        return mark if self._marked_text is None else self._marked_text.spelling(mark)

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._state is _State.REASONING

    @property
    def is_in_arguments(self) -> bool:
        """Whether the text so far ends within a call's arguments."""
        return self._state is _State.ARGUMENTS

    @property
    def is_in_section(self) -> bool:
        """Whether the text so far ends within a section of tool calls."""
        return self._state in (_State.BETWEEN_CALLS, _State.NAME, _State.ARGUMENTS)

    def push(self, text: str, token_ids: Iterable[int] = ()) -> list[Part]:
        """The parts that became certain with `text`, which came with these tokens."""
        self._scanner.push(text if self._marked_text is None else self._marked_text.push(text, token_ids))
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return _joined(parts)

    def finish(self, *, is_cut: bool = False) -> list[Part]:
        """What was held back, at the end of the answer. is_cut: the model would have gone on."""
        parts: list[Part] = []
        rest = self._scanner.rest()
        if self._state is _State.REASONING:
            self._emit_reasoning(rest, parts)
        elif self._state is _State.ARGUMENTS:
            self._emit_arguments("" if rest in self._closes else rest, parts)
            if _is_json_object("".join(self._arguments)):
                self._state = _State.BETWEEN_CALLS
        elif self._state in (_State.OPENING, _State.CONTENT):
            self._emit_content(self._newlines + rest if self._state is _State.OPENING else rest, parts)
        elif self._state is _State.BETWEEN_CALLS and self._section_has_calls:
            self._emit_after_calls(rest, is_cut, parts)
        elif not is_cut and not self._section_has_calls:
            parts.append(Content(self._raw + rest))
        return _joined(parts)

    def _emit_after_calls(self, rest: str, is_cut: bool, parts: list[Part]) -> None:
        """What follows the last call of a section that was not closed. `rest`: may begin a mark."""
        assert self._tools is not None
        text = self._raw.rpartition(self._tools.call_close)[2]
        if text.strip() or not is_cut:
            parts.append(Content((text + rest).lstrip()))

    def _advance(self, parts: list[Part]) -> bool:
        """One step of the state machine; False when more text is needed."""
        if self._state is _State.OPENING:
            return self._open(parts)
        if self._state is _State.REASONING:
            text, marker = self._scanner.next((self._think_close, *self._marks_after_reasoning))
            self._emit_reasoning(text, parts)
            if marker:
                self._newlines, self._at_start = "", True
                if marker == self._think_close:
                    self._state = _State.CONTENT
                else:
                    self._begin_section(marker)
            return marker is not None
        if self._state is _State.CONTENT:
            text, marker = self._scanner.next(self._call_marks)
            self._emit_content(text, parts)
            if marker:
                self._begin_section(marker)
            return marker is not None
        return self._advance_call(parts)

    def _begin_section(self, marker: str) -> None:
        is_call = self._tools is not None and marker == self._tools.call_open
        self._raw, self._state = marker, _State.NAME if is_call else _State.BETWEEN_CALLS
        self._has_section = not is_call
        self._n_calls_before = self.n_calls

    @property
    def _section_has_calls(self) -> bool:
        return self.n_calls > self._n_calls_before

    def _open(self, parts: list[Part]) -> bool:
        text, marker = self._scanner.next((self._think_open,))
        if marker and not text.strip():
            self._newlines, self._state = "", _State.REASONING
            return True
        if marker:
            self._scanner.push_front(marker)
        if text.strip():
            self._state = _State.CONTENT
            self._at_start = False
            self._scanner.push_front(self._newlines + text)
            self._newlines = ""
            return True
        self._newlines += text
        return False

    def _advance_call(self, parts: list[Part]) -> bool:
        tools = self._tools
        assert tools is not None
        if self._state is _State.NAME:
            return self._read_name(tools, parts)
        if self._state is _State.BETWEEN_CALLS:
            text, marker = self._scanner.next((tools.call_open, tools.section_close))
            if text.strip() and not self._has_section:
                self._return_to_content(text.lstrip() + (marker or ""))
                return True
            self._raw += text
        else:
            ends = (tools.call_close, tools.section_close, tools.call_open)
            text, marker = self._scanner.next([close + end for close in self._closes for end in ends])
            self._emit_arguments(text, parts)
        if marker:
            self._go_on(marker, tools, parts)
        return marker is not None

    def _return_to_content(self, text: str) -> None:
        """`text`: taken from the scanner."""
        self._scanner.push_front(text)
        self._state, self._at_start = _State.CONTENT, True

    @property
    def _closes(self) -> set[str]:
        """What may stand between arguments and the next mark."""
        assert self._tools is not None
        close = self._tools.arguments_close
        return {"", close, close + self._tools.between_calls}

    def _go_on(self, marker: str, tools: ToolFormat, parts: list[Part]) -> None:
        """Behind a mark of a section."""
        self._raw += marker
        if marker.endswith(tools.call_open) and not self._has_section:
            self._begin_section(tools.call_open)
        elif marker.endswith(tools.call_open):
            self._state = _State.NAME
        elif marker.endswith(tools.call_close) and (self._has_section or self._section_has_calls):
            self._state = _State.BETWEEN_CALLS
        else:
            if not self._section_has_calls:
                parts.append(Content(self._raw))
            self._state, self._at_start = _State.CONTENT, True

    def _read_name(self, tools: ToolFormat, parts: list[Part]) -> bool:
        ends = (tools.name_close, tools.call_close, tools.section_close)
        text, marker = self._scanner.next(ends if self._has_section else (*ends, tools.call_open))
        self._raw += text
        after = self._raw.removeprefix(tools.call_open)
        if not self._has_section and (marker == tools.call_open or len(after.split()) > 1):  # the mark is a word here
            self._return_to_content(after + (marker or ""))
            self._emit_content(tools.call_open, parts)
            return True
        if marker is None:
            return False
        if marker != tools.name_close:  # no arguments, so no call
            self._go_on(marker, tools, parts)
            return True
        written = self._raw.rpartition(tools.call_open)[2].strip()
        name, written = plain(written.removeprefix(tools.head).strip()), plain(written)
        if tools.is_numbered:
            name = _NUMBER.sub("", name)
        parts.append(CallStart(self.n_calls, name, written if tools.is_numbered else None))
        self.n_calls += 1
        self._arguments, self._state = [], _State.ARGUMENTS
        return True

    def _emit_reasoning(self, text: str, parts: list[Part]) -> None:
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return
        self._at_start = False
        text = self._newlines + text
        kept = text.rstrip("\n")
        self._newlines = text[len(kept) :]
        parts.append(Reasoning(kept))

    def _emit_content(self, text: str, parts: list[Part]) -> None:
        if self._at_start and (self._has_thinking or self.n_calls):
            text = text.lstrip("\n")
        if text:
            self._at_start = False
            parts.append(Content(text))

    def _emit_arguments(self, text: str, parts: list[Part]) -> None:
        self._arguments.append(text)
        parts.append(CallArguments(self.n_calls - 1, text))


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of a kind as one, as the model wrote them; no empty pieces."""
    joined: list[Part] = []
    for part in parts:
        if not isinstance(part, CallStart):
            if not part.text:
                continue
            part = replace(part, text=plain(part.text))
        last = joined[-1] if joined else None
        if isinstance(part, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + part.text)
        elif isinstance(part, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments) and last.index == part.index:
            joined[-1] = CallArguments(part.index, last.text + part.text)
        else:
            joined.append(part)
    return joined


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
