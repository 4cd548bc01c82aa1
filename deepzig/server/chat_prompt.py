"""From the messages of a chat to token ids: template variables, tools, thinking switches, the prefix to continue.

Called by `chat` and `tokens`; calls `text.chat` and `text.chat_messages`. Knows nothing of sampling or streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from deepzig.errors import ContextLengthError, RequestError
from deepzig.server.failures import ApiError
from deepzig.server.requests import ChatRequest, ContentPart, Message, Tool
from deepzig.server.responses_protocol import InputText
from deepzig.server.served_model import ServedModel
from deepzig.text.chat import thinking_variables
from deepzig.text.chat_messages import joined_text

_RESERVED = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}


@dataclass(frozen=True)
class ChatPrompt:
    """Token ids, whether they end within an open <think>, and whether the answer may open one itself."""

    token_ids: list[int]
    in_reasoning: bool
    may_open_reasoning: bool


def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    variables: Mapping[str, Any],
    *,
    begins_answer: bool = True,
) -> ChatPrompt:
    """The prompt of a chat. May take a while: the template runs in another process.

    Args:
        variables: chat_template_kwargs, and what stands for other fields of the request.
        begins_answer: end with what tells the model that it is its turn.

    Raises:
        ApiError, RequestError, TokenizerError: the messages cannot be used, or the model has no template.
    """
    _check_names(variables)
    if model.chat_template is None or model.tokenizer is None:
        raise ApiError(
            400,
            f"the model {model.id!r} has no chat template, so it cannot chat; use /v1/completions",
            code="no_chat_template",
        )
    if tools and model.answer_format.tools is None:
        raise ApiError(
            400, f"the chat template of {model.id!r} has no tool calls; leave tools out", code="no_tools", param="tools"
        )
    prefix = messages[-1] if messages[-1].prefix else None
    if prefix is not None and prefix.role != "assistant":
        raise ApiError(400, "only an assistant's message can be a prefix", param="messages", code="invalid_value")
    if any(message.prefix for message in messages[:-1]):
        raise ApiError(400, "only the last message can be a prefix", param="messages", code="invalid_value")
    listed = [_as_defined(tool) for tool in tools] if tools else None
    template = (model.tool_template if tools else None) or model.chat_template
    conversation = [_as_given(message) for message in (messages if prefix is None else messages[:-1])]
    try:
        ids = template.render_tokens(
            conversation,
            model.tokenizer,
            model.llm.prompt_room,
            add_generation_prompt=begins_answer,
            tools=listed,
            **variables,
        )
    except ContextLengthError:
        raise
    except RequestError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error
    in_reasoning = model.answer_format.ends_in_reasoning(ids, model.tokenizer)
    may_open = not in_reasoning and model.answer_format.may_open_reasoning(ids, model.tokenizer)
    if prefix is not None:
        content = plain_text(prefix.content)
        if content and not (in_reasoning or may_open or prefix.reasoning_content or prefix.reasoning):
            room = model.llm.prompt_room
            begun = template.render_begun(conversation, content, model.tokenizer, room, tools=listed, **variables)
            if begun is not None:
                return ChatPrompt(begun, False, False)
        in_reasoning = _continue(model, ids, prefix, in_reasoning)
        may_open = may_open and not prefix.content
    return ChatPrompt(ids, in_reasoning, may_open)


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """chat_template_kwargs and the thinking switches, under the names that templates use."""
    variables = dict(request.chat_template_kwargs or {})
    thinking: bool | None = None
    if request.reasoning_effort is not None:
        thinking = request.reasoning_effort not in ("none", "minimal")
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    if request.enable_thinking is not None:
        thinking = request.enable_thinking
    if request.thinking is not None:
        thinking = request.thinking.type == "enabled"
    for name, other in (("thinking", "enable_thinking"), ("enable_thinking", "thinking")):
        if isinstance(variables.get(other), bool):
            variables.setdefault(name, variables[other])
    if thinking is not None:
        variables |= thinking_variables(thinking)
    return variables


def is_thinking_off(variables: Mapping[str, Any]) -> bool:
    """Whether `template_variables` ask for an answer without thoughts."""
    return variables.get("thinking") is False


def _check_names(variables: Mapping[str, Any]) -> None:
    if taken := _RESERVED & variables.keys():
        raise ApiError(400, f"chat_template_kwargs may not set {sorted(taken)[0]}", param="chat_template_kwargs")
    if bad := next((name for name in variables if not name.isidentifier()), None):
        raise ApiError(400, f"chat_template_kwargs has {bad!r:.80}, which is no name", param="chat_template_kwargs")


def _as_given(message: Message) -> dict[str, Any]:
    """A message without the fields that the client left out."""
    given: dict[str, Any] = msgspec.to_builtins(message)
    return {name: value for name, value in given.items() if value is not None}


def _as_defined(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's order, which models have learned, without the fields that the client left out."""
    function = {name: value for name, value in msgspec.to_builtins(tool.function).items() if value is not None}
    return {"type": tool.type, "function": function}


def plain_text(content: str | Sequence[ContentPart | InputText] | None) -> str | None:
    """The text of a message or of past reasoning."""
    if content is None or isinstance(content, str):
        return content
    return joined_text([{"type": "text", "text": part.text} for part in content])


def _continue(model: ServedModel, ids: list[int], prefix: Message, in_reasoning: bool) -> bool:
    """Append the begun answer to `ids`; returns whether reasoning is still open after it."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    content = plain_text(prefix.content)
    reasoning = prefix.reasoning_content or prefix.reasoning
    tokenizer.check_room(f"{reasoning or ''}{content or ''}", model.llm.prompt_room)
    if reasoning and not in_reasoning:
        raise ApiError(400, "a prefix with reasoning_content needs a prompt that opens thoughts", param="messages")
    if reasoning:
        ids += tokenizer.encode(reasoning, add_bos=False, allow_special=False)
    if not content:
        return in_reasoning
    if in_reasoning and model.think_ids is not None:
        ids.append(model.think_ids.closed)
    ids += tokenizer.encode(content, add_bos=False, allow_special=False)
    return False
