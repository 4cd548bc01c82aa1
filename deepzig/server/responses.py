"""/v1/responses, stateless: a chat in the words of OpenAI's newer API.

Called by `app`; calls `chat` and `chat_prompt`.
"""

import copy
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deepzig.engine.results import GenerationResult, Progress, StreamChunk
from deepzig.server.chat import plan_chat
from deepzig.server.chat_prompt import plain_text
from deepzig.server.failures import ApiError, blaming
from deepzig.server.replies import ReasoningTokens
from deepzig.server.requests import (
    ChatRequest,
    FunctionCall,
    FunctionDefinition,
    JsonSchema,
    Message,
    NamedFunction,
    NamedToolChoice,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)
from deepzig.server.responses_protocol import (
    IncompleteDetails,
    InputItem,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseError,
    ResponseEvent,
    ResponseReply,
    ResponsesInputDetails,
    ResponsesRequest,
    ResponsesTool,
    ResponsesUsage,
    TextFormat,
)
from deepzig.server.run import Ask
from deepzig.server.served_model import ServedModel
from deepzig.server.usage import usage_of
from deepzig.text.answer_parser import AnswerParser, CallArguments, CallStart, Part, Reasoning


def prepare_response(model: ServedModel, request: ResponsesRequest, tenant: str) -> tuple[Ask, "ResponseAnswer"]:
    """What the engine is asked, and the answer that will take its chunks. Raises as `chat.plan_chat`."""
    for field in ("previous_response_id", "conversation"):
        if getattr(request, field) is not None:
            message = "responses are not stored; send the whole input"
            raise ApiError(400, message, param=field, code="unsupported_value")
    with blaming("input"):
        plan = plan_chat(model, _as_chat(request), tenant)
    return replace(plan.ask, field="input"), ResponseAnswer(model, request, plan.parser())


def _as_chat(request: ResponsesRequest) -> ChatRequest:
    """The request in the words of /v1/chat/completions."""
    messages = [Message(role="system", content=request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        messages.append(Message(role="user", content=request.input))
    else:
        messages += _messages(request.input)
    text_format = request.text.format if request.text else None
    return ChatRequest(
        messages=messages,
        model=request.model,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        tools=[_tool(tool) for tool in _functions(request)],
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=None if text_format is None else _response_format(text_format),
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
    )


def _functions(request: ResponsesRequest) -> list[ResponsesTool]:
    """The tools but those of other types, such as web_search: clients list them unasked."""
    return [tool for tool in request.tools or [] if tool.type == "function"]


def _tool(tool: ResponsesTool) -> Tool:
    if tool.name is None:
        raise ApiError(400, "a function needs a name", param="tools", code="invalid_value")
    return Tool(
        function=FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
    )


def _response_format(given: TextFormat) -> ResponseFormat:
    schema = JsonSchema(schema=given.schema, name=given.name, strict=given.strict)
    return ResponseFormat(type=given.type, json_schema=schema)


def _tool_choice(request: ResponsesRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    return NamedToolChoice(function=NamedFunction(name=choice.name))


def _messages(items: Sequence[InputItem]) -> list[Message]:
    """Messages of the input; calls and reasoning join the assistant's message that they belong to."""
    messages: list[Message] = []
    reasoning: str | None = None
    for item in items:
        if item.type == "item_reference":
            message = "items are not stored; send them whole (store=false in the AI SDK)"
            raise ApiError(400, message, param="input", code="unsupported_value")
        if item.type == "reasoning":
            reasoning = plain_text(item.content)
        elif item.type == "function_call":
            if item.name is None or item.call_id is None:
                raise ApiError(400, "a function_call needs name and call_id", param="input", code="invalid_value")
            call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments or "{}"))
            last = messages[-1] if messages and messages[-1].role == "assistant" else None
            if last is None:
                last = Message(role="assistant", reasoning_content=reasoning)
                messages.append(last)
            last.tool_calls = [*(last.tool_calls or []), call]
        elif item.type == "function_call_output":
            messages.append(Message(role="tool", content=plain_text(item.output) or "", tool_call_id=item.call_id))
        else:
            if item.role is None:
                raise ApiError(400, "a message needs a role", param="input", code="invalid_value")
            own = reasoning if item.role == "assistant" else None
            messages.append(Message(role=item.role, content=plain_text(item.content), reasoning_content=own))
        if item.type != "reasoning":
            reasoning = None
    if not messages:
        raise ApiError(400, "the input has no message", param="input", code="invalid_value")
    return messages


class ResponseAnswer:
    """A response in the making (see `answer.Answer`): items one after the other, each opened, filled and closed."""

    wants_progress = False

    def __init__(self, model: ServedModel, request: ResponsesRequest, parser: AnswerParser) -> None:
        self._parser = parser
        self._n_events = 0
        self._n_reasoning = 0
        self._item: OutputItem | None = None  # the one that is being filled
        self._texts: list[str] = []  # of that item
        self._reply = ResponseReply(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            model=model.id,
            output=[],
            status="in_progress",
            parallel_tool_calls=request.parallel_tool_calls is not False,
            tool_choice=request.tool_choice or "auto",
            tools=_functions(request),
            instructions=request.instructions,
            temperature=request.temperature,
            top_p=request.top_p,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
        )

    def start(self) -> Sequence[ResponseEvent]:
        """The empty response."""
        return [self._event(f"response.{kind}", response=self._reply) for kind in ("created", "in_progress")]

    def take(self, prompt: int, chunk: StreamChunk) -> Sequence[ResponseEvent]:
        """What a chunk adds to the item at hand, and items that begin or end with it."""
        if self._parser.is_reasoning:
            self._n_reasoning += len(chunk.token_ids)
        parts = self._parser.push(chunk.text, chunk.token_ids)
        if chunk.finish_reason is not None:
            parts += self._parser.finish(is_cut=chunk.finish_reason == "length")
        events = [event for part in parts for event in self._add(part)]
        if chunk.result is not None:
            events += self._close_item(is_cut=chunk.finish_reason == "length" and not self._is_complete)
            self._end(chunk.result)
        return events

    def progress(self, progress: Progress, elapsed_s: float) -> ResponseEvent:
        """Not in this protocol."""
        raise NotImplementedError

    def finish(self) -> Sequence[ResponseEvent]:
        """The whole response."""
        return [self._event(f"response.{self._reply.status}", response=self._reply)]

    def whole(self) -> ResponseReply:
        """The reply, if it is not streamed."""
        return self._reply

    def failure(self, error: ApiError) -> ResponseEvent:
        """The event of a response that failed."""
        self._reply.status = "failed"
        self._reply.error = ResponseError(error.code or "server_error", error.message)
        return self._event("response.failed", response=self._reply)

    @property
    def end_reason(self) -> str:
        """Why the answer ended, for the metrics."""
        if self._parser.n_calls:
            return "tool_calls"
        return "length" if self._reply.status == "incomplete" else "stop"

    def _end(self, result: GenerationResult) -> None:
        usage = usage_of([result], self._n_reasoning)
        self._reply.usage = ResponsesUsage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            ResponsesInputDetails(usage.prompt_cache_hit_tokens),
            ReasoningTokens(self._n_reasoning),
        )
        self._reply.status = "completed"
        if result.finish_reason == "length":
            self._reply.status = "incomplete"
            self._reply.incomplete_details = IncompleteDetails("max_output_tokens")

    def _add(self, part: Part) -> list[ResponseEvent]:
        kind = OutputReasoning if isinstance(part, Reasoning) else OutputMessage
        events: list[ResponseEvent] = []
        if isinstance(part, CallStart):
            return self._open_item(OutputCall(_id("fc"), part.id or _id("call"), part.name, ""))
        if isinstance(part, CallArguments):
            self._texts.append(part.text)
            return [self._item_event("response.function_call_arguments.delta", delta=part.text)]
        if not isinstance(self._item, kind):
            events = self._open_item(
                OutputReasoning(_id("rs"), []) if kind is OutputReasoning else OutputMessage(_id("msg"), [])
            )
        self._texts.append(part.text)
        name = "reasoning_text" if kind is OutputReasoning else "output_text"
        more: dict[str, Any] = {} if kind is OutputReasoning else {"logprobs": []}
        return [*events, self._item_event(f"response.{name}.delta", content_index=0, delta=part.text, **more)]

    def _open_item(self, item: OutputItem) -> list[ResponseEvent]:
        events = self._close_item()
        self._item, self._texts = item, []
        self._reply.output.append(item)
        events.append(self._event("response.output_item.added", output_index=self._index, item=copy.copy(item)))
        if not isinstance(item, OutputCall):
            part = _part(item, "")
            events.append(self._item_event("response.content_part.added", content_index=0, part=part))
        return events

    @property
    def _is_complete(self) -> bool:
        """The last item is a call that the model has ended, or reasoning."""
        if isinstance(self._item, OutputCall):
            return not self._parser.is_in_arguments
        return isinstance(self._item, OutputReasoning) and not self._parser.is_reasoning

    def _close_item(self, *, is_cut: bool = False) -> list[ResponseEvent]:
        item, text = self._item, "".join(self._texts)
        if item is None:
            return []
        item.status = "incomplete" if is_cut else "completed"
        if isinstance(item, OutputCall):
            item.arguments = text
            event = self._item_event("response.function_call_arguments.done", name=item.name, arguments=text)
            events = [event]
        else:
            part = _part(item, text)
            item.content = [part]  # type: ignore[assignment]
            more: dict[str, Any] = {"logprobs": []} if isinstance(part, OutputText) else {}
            events = [
                self._item_event(f"response.{part.type}.done", content_index=0, text=text, **more),
                self._item_event("response.content_part.done", content_index=0, part=part),
            ]
        events.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._item = None
        return events

    @property
    def _index(self) -> int:
        return len(self._reply.output) - 1

    def _item_event(self, kind: str, **fields: Any) -> ResponseEvent:
        assert self._item is not None
        return self._event(kind, item_id=self._item.id, output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        self._n_events += 1
        return ResponseEvent(kind, self._n_events - 1, **fields)


def _part(item: OutputMessage | OutputReasoning, text: str) -> OutputText | ReasoningText:
    return ReasoningText(text) if isinstance(item, OutputReasoning) else OutputText(text)


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
