"""ChatTemplate: lists of messages to token ids, by the template that the model folder brings.

Called by engine, cli and server; calls `chat_messages` for the messages, `render_process` for the text and `Tokenizer`
for the ids. Knows nothing of any model's message format: that is the template's business.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from deepzig.errors import RequestError, TokenizerError, shown
from deepzig.small_files import read_small
from deepzig.text.answer_format import ToolFormat
from deepzig.text.chat_messages import as_templates_expect, with_calls_apart
from deepzig.text.render_process import RenderProcess
from deepzig.text.tokenizer import Tokenizer
from deepzig.text.tokenizer_config import TokenizerConfig
from deepzig.text.tool_prompt import prelude

MAX_TEMPLATE_BYTES = 1 << 20
# Printable symbols that hardly any text holds (hexagrams, Braille), then private use: see `_stand_ins`.
_STAND_IN_CANDIDATES = (range(0x4DC0, 0x4E00), range(0x2801, 0x2900), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))


class ChatTemplate:
    """A Jinja template from a model folder. It runs in a sandbox, in a process of its own with limited time and memory.

    Control tokens such as `<think>` count only where the template itself writes them; in messages, tools and variables
    they are plain text.

    Attributes:
        source: the template as it stands in the folder.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self.source = source
        self._constants = dict(names)  # bos_token, eos_token, ... as the template writes them
        self._process = RenderProcess(source)

    @classmethod
    def from_directory(cls, directory: Path) -> "ChatTemplate | None":
        """The template of a model folder: chat_template.jinja, else tokenizer_config.json's; None if it has neither.

        Raises TokenizerError if it cannot be read. Errors in the template itself show at the first render.
        """
        config = TokenizerConfig.from_directory(directory)
        path = directory / "chat_template.jinja"
        if path.is_file():
            try:
                return cls(read_small(path, MAX_TEMPLATE_BYTES, TokenizerError).decode(), config.names)
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"chat_template.jinja is not UTF-8 (byte {error.start}); download it again"
                ) from error
        if config.chat_template is None:
            return None
        return cls(_default_template(config.chat_template), config.names)

    def telling_tools(self, tools: ToolFormat) -> "ChatTemplate":
        """This template, or one that also tells the model of its tools where this one does not."""
        before = prelude(self.source, tools)
        return ChatTemplate(before + self.source, self._constants) if before else self

    def tells_roles(self) -> bool:
        """Whether it writes down who speaks. If not, the model has only learned to go on with texts."""
        end = {"role": "user", "content": "b"}
        try:
            texts = [self.render_text([{"role": role, "content": "a"}, end]) for role in ("user", "assistant")]
        except RequestError:  # it cares for the order of roles
            return True
        return texts[0] != texts[1]

    def switches_thinking(self) -> bool:
        """Whether `thinking_variables` change what it writes."""
        question = [{"role": "user", "content": "a"}]
        texts = [self.render_text(question, **thinking_variables(is_on)) for is_on in (True, False)]
        return texts[0] != texts[1]

    @cached_property
    def drops_calls_beside_content(self) -> bool:
        """Whether it writes an assistant's calls only where the content is null: not even beside an empty text."""
        return self._shows_calls_beside(None) and not self._shows_calls_beside("")

    def _shows_calls_beside(self, content: str | None) -> bool:
        name = "look_for_this_name"
        call = {"id": f"functions.{name}:0", "type": "function", "function": {"name": name, "arguments": "{}"}}
        answer = {"role": "assistant", "content": content, "tool_calls": [call]}
        given = {"messages": [{"role": "user", "content": "a"}, answer], "tools": None, "add_generation_prompt": True}
        try:
            return name in self._process.render(self._constants, given)
        except (RequestError, TokenizerError):  # it looks into the content, or knows no calls
            return False

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,  # so that variables may have the names of what stands above
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt as text, the same as HF's `apply_chat_template(tokenize=False)` where contents are texts.

        For people to read: control tokens written by users look like the template's. Arguments and errors are those of
        `render_tokens`.
        """
        given = self._given(messages, tools, add_generation_prompt, variables)
        return self._process.render(self._constants, given)

    def render_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        room: int | None = None,
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids. Where no user text spells a control token they are
        `tokenizer.encode(self.render_text(...), add_bos=False)`.

        Args:
            messages: as in [{"role": "user", "content": "Hello"}]; JSON values only. A content may be a list of
                OpenAI's text parts. A developer is the system where the template knows none.
            tokenizer: the model's.
            room: tokens that the prompt may have, None: any number.
            add_generation_prompt: end with what tells the model that it is its turn.
            tools: functions that the model may call, in OpenAI's form.
            variables: further names for the template, as in thinking=True.

        Raises:
            TokenizerError: the template fails, or exceeds its time, memory or output.
            ResourceError: the process that renders it is killed, or cannot be started.
            RequestError: the template refuses the messages, or they are no JSON values, or more than texts.
            ContextLengthError: the prompt is so long that it cannot have so few tokens as `room`.
        """
        given = self._given(messages, tools, add_generation_prompt, variables)
        chars, stand_ins, _ = self._guard(given, tokenizer)
        guarded = self._process.render(self._constants, given, chars, stand_ins)
        return _encode_guarded(guarded, str.maketrans(stand_ins, chars), tokenizer, room)

    def render_begun(
        self,
        messages: Sequence[Mapping[str, Any]],
        content: str,
        tokenizer: Tokenizer,
        room: int | None = None,
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int] | None:
        """The prompt with an answer that begins with `content`, as HF's `continue_final_message` has it: also with the
        space that the template writes before an answer.

        None if the template refuses such messages, or does not write the whole content after what tells the model
        that it is its turn. Arguments and other errors are those of `render_tokens`.
        """
        given = self._given([*messages, {"role": "assistant", "content": content}], tools, False, variables)
        chars, stand_ins, mark = self._guard(given, tokenizer)
        before = given | {"messages": given["messages"][:-1], "add_generation_prompt": True}
        given["messages"][-1]["content"] += mark
        try:
            prompt, whole = (self._process.render(self._constants, each, chars, stand_ins) for each in (before, given))
        except (RequestError, TokenizerError):  # some demand that a user speaks last
            return None
        begun, _, _ = whole.rpartition(mark)
        if not begun.startswith(prompt) or not begun.endswith(content.translate(str.maketrans(chars, stand_ins))):
            return None
        return _encode_guarded(begun, str.maketrans(stand_ins, chars), tokenizer, room)

    def _given(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> dict[str, Any]:
        """What the template is given: JSON values, and messages in the form in which it shows them all."""
        given = _as_json(
            variables | {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        )
        expected = as_templates_expect(given["messages"], knows_developer="developer" in self.source)
        if any(message.get("tool_calls") for message in expected) and self.drops_calls_beside_content:
            expected = with_calls_apart(expected)
        return given | {"messages": expected}

    def _guard(self, given: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[str, str, str]:
        """Characters that control tokens begin or end with, their stand-ins, and one more that occurs nowhere."""
        used = set().union(self.source, *self._constants.values(), *_strings(given))
        chars = "".join(sorted(tokenizer.control_tokens.edge_chars & used))
        unused = _stand_ins(len(chars) + 1, used)
        return chars, unused[:-1], unused[-1]


def thinking_variables(is_on: bool) -> dict[str, Any]:
    """Variables that have a model think or not, under the names that templates use."""
    return {"thinking": is_on, "enable_thinking": is_on}


def _encode_guarded(guarded: str, reveal: dict[int, int], tokenizer: Tokenizer, room: int | None) -> list[int]:
    """Ids of a rendered text in which control tokens written by users are marked by stand-ins. Raises
    ContextLengthError if it cannot have so few as `room`."""
    if room is not None:
        tokenizer.check_room(guarded, room)
    control_tokens = tokenizer.control_tokens
    text = guarded.translate(reveal)
    spans = list(control_tokens.spans(guarded))
    if all(found == span for found, span in zip_longest(control_tokens.spans(text), spans)):
        ids = tokenizer.encode(text, add_bos=False)
        expected = [control_tokens.ids[guarded[start:end]] for start, end in spans]
        # Normalization may find more control tokens than the spelling shows, so the ids themselves decide.
        if [token_id for token_id in ids if token_id in control_tokens.id_set] == expected:
            return ids
    ids = []
    for piece, token_id in control_tokens.split(guarded):
        plain = piece.translate(reveal)
        ids += [token_id] if token_id is not None else tokenizer.encode(plain, add_bos=False, allow_special=False)
    return ids


def _stand_ins(n_chars: int, used: set[str]) -> str:
    """`n_chars` different characters that occur nowhere in template and messages."""
    unused = (chr(code) for code in chain(*_STAND_IN_CANDIDATES) if chr(code) not in used)
    found = "".join(char for char, _ in zip(unused, range(n_chars), strict=False))
    if len(found) < n_chars:
        raise RequestError("the messages use every private-use character of Unicode; leave some out")
    return found


def _as_json(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is given, as plain JSON values."""
    try:
        content = json.dumps(given, ensure_ascii=False)
        content.encode()
    except UnicodeEncodeError as error:
        raise RequestError("the messages have a lone surrogate, which is no character; remove it") from error
    except (TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error))
        raise RequestError(f"the messages are no JSON values ({reason}); use dicts, lists and strings") from error
    plain: dict[str, Any] = json.loads(content)
    return plain


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)


def _default_template(field: object) -> str:
    """tokenizer_config.json's `chat_template`: a string, or a list of {name, template} of which "default" counts."""
    if isinstance(field, list):
        defaults = [entry for entry in field if isinstance(entry, dict) and entry.get("name") == "default"]
        field = defaults[-1].get("template") if defaults else None
    if not isinstance(field, str):
        raise TokenizerError('tokenizer_config.json: chat_template is neither a text nor a list with a "default" one')
    if len(field.encode(errors="surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise TokenizerError(f"the chat template is larger than {MAX_TEMPLATE_BYTES >> 10} KiB, which no real one is")
    return field
