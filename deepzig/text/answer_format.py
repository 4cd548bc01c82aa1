"""AnswerFormat: how a family of models marks its reasoning and tool calls, read off its chat template.

Made by the server and by the chat in the terminal, once per model; used by `answer_parser`, `tool_prompt` and
`constraint`. The formats are those of the chat templates that DeepSeek publishes with V2.5, V3, R1 and R1-0528 (one
format) and with V3.1, and Moonshot with Kimi-K2.
"""

# ruff: noqa: RUF001

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from deepzig.text.tokenizer import Tokenizer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True)
class ToolFormat:
    """section_open (call_open head name name_close arguments arguments_close call_close)... section_close.

    V3 writes the word "function" as head and fences the arguments; V3.1 has neither. Kimi-K2 numbers its calls.
    """

    name: str
    section_open: str
    section_close: str
    call_open: str
    call_close: str
    head: str  # what stands before the name, the separator included
    name_close: str  # between name and arguments
    arguments_close: str  # between arguments and call_close
    between_calls: str
    is_numbered: bool = False  # ":" and a number follow the name; head, name and number are the call's id
    ends_reasoning: bool = False  # a section does, as </think> does; if not, thoughts may draft calls

    def spelled(self, spelling: Callable[[str], str]) -> "ToolFormat":
        """The same with other spellings of its marks."""
        marks: dict[str, Any] = {name: spelling(text) for name, text in vars(self).items() if isinstance(text, str)}
        return replace(self, **marks)


DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    section_open="<｜tool▁calls▁begin｜>",
    section_close="<｜tool▁calls▁end｜>",
    call_open="<｜tool▁call▁begin｜>",
    call_close="<｜tool▁call▁end｜>",
    head="function<｜tool▁sep｜>",
    name_close="\n```json\n",
    arguments_close="\n```",
    between_calls="\n",
)
DEEPSEEK_V31 = replace(
    DEEPSEEK_V3, name="deepseek_v31", head="", name_close="<｜tool▁sep｜>", arguments_close="", between_calls=""
)
KIMI_K2 = ToolFormat(
    name="kimi_k2",
    section_open="<|tool_calls_section_begin|>",
    section_close="<|tool_calls_section_end|>",
    call_open="<|tool_call_begin|>",
    call_close="<|tool_call_end|>",
    head="functions.",
    name_close="<|tool_call_argument_begin|>",
    arguments_close="",
    between_calls="",
    is_numbered=True,
    ends_reasoning=True,  # in K2-Thinking
)


@dataclass(frozen=True)
class AnswerFormat:
    """What of an answer is not its content."""

    has_thinking: bool
    tools: ToolFormat | None

    @classmethod
    def of_template(cls, source: str | None) -> "AnswerFormat":
        """The format that a chat template's source tells of; None: a model without one."""
        if source is None:
            return cls(False, None)
        has_thinking = THINK_CLOSE in source
        if KIMI_K2.section_open in source:
            return cls(has_thinking, KIMI_K2)
        if DEEPSEEK_V3.section_open not in source:
            return cls(has_thinking, None)
        return cls(has_thinking, DEEPSEEK_V3 if "```json" in source else DEEPSEEK_V31)

    def ends_in_reasoning(self, ids: Sequence[int], tokenizer: Tokenizer) -> bool:
        """Whether a prompt ends within reasoning: its last mark opens it."""
        marks = ThinkIds.of_tokenizer(tokenizer) if self.has_thinking else None
        return marks is not None and next((token == marks.opened for token in reversed(ids) if token in marks), False)

    def may_open_reasoning(self, ids: Sequence[int], tokenizer: Tokenizer) -> bool:
        """Whether an answer to a prompt may begin with <think>: no mark stands at the prompt's very end."""
        marks = ThinkIds.of_tokenizer(tokenizer) if self.has_thinking else None
        if marks is None:
            return self.has_thinking
        return next((token not in marks for token in reversed(ids) if tokenizer.token_bytes(token).strip()), True)


class ThinkIds(NamedTuple):
    """Token ids of the marks around reasoning."""

    opened: int
    closed: int

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> "ThinkIds | None":
        """None if the tokenizer lacks one of them."""
        ids = tokenizer.control_tokens.ids
        return cls(ids[THINK_OPEN], ids[THINK_CLOSE]) if THINK_OPEN in ids and THINK_CLOSE in ids else None
