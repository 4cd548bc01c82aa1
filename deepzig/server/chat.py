"""/v1/chat/completions: from the body to what the engine is asked, and from its chunks to OpenAI's objects.

Called by `app` and `websocket`; calls `chat_prompt`, `constraints`, `text.answer_parser` and `text.marked_text`.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from deepzig.engine.results import GenerationResult, Progress, StreamChunk
from deepzig.server.chat_prompt import ChatPrompt, chat_prompt, is_thinking_off, template_variables
from deepzig.server.constraints import budget_constraint, chat_constraint
from deepzig.server.failures import ApiError, ErrorBody
from deepzig.server.logprobs import chat_logprob
from deepzig.server.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    Delta,
    FinishReason,
    FunctionReply,
    ToolCallDelta,
    ToolCallReply,
    Usage,
)
from deepzig.server.requests import ChatRequest
from deepzig.server.run import Ask
from deepzig.server.sampling_fields import sampling_params
from deepzig.server.served_model import ServedModel
from deepzig.server.usage import prompt_progress, timings_of, usage_of
from deepzig.text.answer_format import THINK_CLOSE, THINK_OPEN
from deepzig.text.answer_parser import AnswerParser, CallArguments, CallStart, Content, Part, Reasoning
from deepzig.text.marked_text import MarkedText


@dataclass(frozen=True)
class ChatPlan:
    """What the engine is asked, and how its answers are to be read."""

    ask: Ask
    model: ServedModel
    prompt: ChatPrompt
    with_tools: bool

    def parser(self) -> AnswerParser:
        """A parser for one answer."""
        assert self.model.tokenizer is not None  # which made the prompt
        return AnswerParser(
            self.model.answer_format,
            MarkedText(self.model.tokenizer, self.prompt.token_ids),
            in_reasoning=self.prompt.in_reasoning,
            may_open_reasoning=self.prompt.may_open_reasoning,
            with_tools=self.with_tools,
        )


def prepare_chat(model: ServedModel, request: ChatRequest, tenant: str) -> tuple[Ask, "ChatAnswer"]:
    """What the engine is asked, and the answer that will take its chunks. Raises as `plan_chat`."""
    plan = plan_chat(model, request, tenant)
    return plan.ask, ChatAnswer(model, request, plan)


def plan_chat(model: ServedModel, request: ChatRequest, tenant: str) -> ChatPlan:
    """From messages to tokens. May take a while: templates and grammars.

    Raises:
        ApiError, RequestError, TokenizerError: the request cannot be served.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    with_tools = bool(request.tools) and request.tool_choice != "none"
    if not with_tools and request.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    tools = request.tools if with_tools else None
    variables = template_variables(request)
    prompt = chat_prompt(model, request.messages, tools, variables)
    budget = 0 if is_thinking_off(variables) else request.thinking_token_budget  # some templates have no switch
    params = sampling_params(
        request,
        model.llm.config.vocab_size,
        max_tokens=request.max_completion_tokens or request.max_tokens or model.n_context,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    compile_constraint = chat_constraint(model, request, prompt, budget)
    ask = Ask(
        prompts=[prompt.token_ids],
        params=params,
        constraint=budget_constraint(model, request, prompt, budget) if compile_constraint is None else None,
        compile_constraint=compile_constraint,
        tenant=tenant,
        priority=request.priority or 0,
    )
    return ChatPlan(ask, model, prompt, with_tools)


class ChatAnswer:
    """A chat's answer in the making (see `answer.Answer`)."""

    def __init__(self, model: ServedModel, request: ChatRequest, plan: ChatPlan) -> None:
        options = request.stream_options
        self.wants_progress = bool(request.return_progress)
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._with_usage = bool(options and options.include_usage)
        self._choices = [_Choice(model, plan.parser()) for _ in range(plan.ask.params.n)]
        self._results: list[GenerationResult] = []

    def start(self) -> Sequence[ChatChunk]:
        """The role, for each choice."""
        return [
            self._chunk([ChatChunkChoice(index, Delta(role="assistant", content=""))])
            for index in range(len(self._choices))
        ]

    def take(self, prompt: int, chunk: StreamChunk) -> Sequence[ChatChunk]:
        """Deltas of a chunk; its last piece of text and its finish_reason are events of their own."""
        choice = self._choices[chunk.index]
        if chunk.result is not None:
            self._results.append(chunk.result)
        deltas, entries = choice.take(chunk)
        if entries and not deltas:
            deltas = [Delta(content="")]  # tokens whose text is held back
        events = [self._chunk([ChatChunkChoice(chunk.index, delta)]) for delta in deltas]
        if entries:
            events[0].choices[0].logprobs = ChatLogprobs(entries)
        if choice.finish_reason is not None:
            events.append(self._chunk([ChatChunkChoice(chunk.index, Delta(), choice.finish_reason)]))
        return events

    def progress(self, progress: Progress, elapsed_s: float) -> ChatChunk:
        """An event without text that tells how far the prompt is."""
        event = self._chunk([ChatChunkChoice(0, Delta())])
        event.prompt_progress = prompt_progress(progress, elapsed_s)
        return event

    def finish(self) -> Sequence[ChatChunk]:
        """The usage, if it was asked for."""
        if not self._with_usage:
            return []
        event = self._chunk([])
        event.usage, event.timings = self._usage(), timings_of(self._results)
        return [event]

    def whole(self) -> ChatCompletion:
        """The reply, if it is not streamed."""
        return ChatCompletion(
            id=self.id,
            created=self._created,
            model=self._model.id,
            choices=[choice.whole(index) for index, choice in enumerate(self._choices)],
            usage=self._usage(),
            system_fingerprint=self._model.fingerprint,
            timings=timings_of(self._results),
        )

    def failure(self, error: ApiError) -> ErrorBody:
        """An event with OpenAI's error body, which its clients raise."""
        return error.body

    @property
    def end_reason(self) -> str:
        """The first choice's finish_reason."""
        return self._choices[0].finish_reason or "stop"

    def _usage(self) -> Usage:
        return usage_of(self._results, sum(choice.n_reasoning for choice in self._choices))

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        usage: UnsetType | None = None if self._with_usage else UNSET
        return ChatChunk(self.id, self._created, self._model.id, choices, self._model.fingerprint, usage=usage)


class _Choice:
    """One of n answers so far."""

    def __init__(self, model: ServedModel, parser: AnswerParser) -> None:
        self.finish_reason: FinishReason | None = None
        self.n_reasoning = 0  # tokens
        self._model = model
        self._parser = parser
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[ToolCallReply] = []
        self._logprobs: list[ChatLogprob] | None = None
        self._is_in_mark = False  # a <think> is open in the content

    def take(self, chunk: StreamChunk) -> tuple[list[Delta], list[ChatLogprob]]:
        """Add a chunk: what it adds to the answer, and log-probabilities of its tokens of the answer proper."""
        entries: list[ChatLogprob] = []
        if self._parser.is_reasoning:
            self.n_reasoning += len(chunk.token_ids)
        elif chunk.logprobs is not None and self._model.tokenizer is not None:
            tokenizer = self._model.tokenizer
            entries = [chat_logprob(e, tokenizer) for e in chunk.logprobs if not tokenizer.is_special(e.token_id)]
            self._logprobs = (self._logprobs or []) + entries
        parts = self._parser.push(chunk.text, chunk.token_ids)
        if chunk.finish_reason is not None:
            parts += self._parser.finish(is_cut=chunk.finish_reason == "length")
            self.finish_reason = "length" if chunk.finish_reason == "length" else "stop"
            if self.finish_reason == "stop" and self._parser.n_calls and not self._parser.is_in_arguments:
                self.finish_reason = "tool_calls"
        deltas: list[Delta] = []
        for part in parts:
            if isinstance(part, CallStart):
                deltas += self._close_mark()
            deltas.append(self._delta(part))
        if self.finish_reason is not None and not self._parser.is_reasoning:
            deltas += self._close_mark()
        return deltas, entries

    def _close_mark(self) -> list[Delta]:
        """</think> in the content, where no content comes to bring it."""
        return [self._delta(Content(""))] if self._is_in_mark else []

    def _delta(self, part: Part) -> Delta:
        if isinstance(part, CallStart):
            call = ToolCallReply(part.id or f"call_{uuid.uuid4().hex[:24]}", FunctionReply("", part.name))
            self._calls.append(call)
            delta = ToolCallDelta(part.index, FunctionReply("", part.name), id=call.id, type="function")
            return Delta(tool_calls=[delta])
        if isinstance(part, CallArguments):
            self._calls[part.index].function.arguments += part.text
            return Delta(tool_calls=[ToolCallDelta(part.index, FunctionReply(part.text))])
        if isinstance(part, Reasoning):
            self._texts["reasoning"].append(part.text)
        keeps_reasoning = self._model.reasoning_format != "deepseek"
        content = self._marked(part) if keeps_reasoning else part.text if isinstance(part, Content) else ""
        self._texts["content"].append(content)
        if isinstance(part, Content):
            return Delta(content=content)
        if self._model.reasoning_format == "none":
            return Delta(content=content)
        return Delta(reasoning_content=part.text, reasoning=part.text, content=content if content else UNSET)

    def _marked(self, part: Reasoning | Content) -> str:
        """Text of the content when it keeps the reasoning, between its marks."""
        is_reasoning = isinstance(part, Reasoning)
        mark = "" if is_reasoning is self._is_in_mark else f"{THINK_OPEN}\n" if is_reasoning else f"\n{THINK_CLOSE}\n\n"
        self._is_in_mark = is_reasoning
        return mark + part.text

    def whole(self, index: int) -> ChatChoice:
        """The choice, when it has ended."""
        assert self.finish_reason is not None
        content, reasoning = "".join(self._texts["content"]), "".join(self._texts["reasoning"])
        has_calls = bool(self._calls) or self._parser.is_in_section  # of a section that was cut nothing may be left
        message = AssistantMessage(content if content or not has_calls else None)
        if reasoning and self._model.reasoning_format != "none":
            message.reasoning_content = message.reasoning = reasoning
        if self._calls:
            message.tool_calls = self._calls
        logprobs = None if self._logprobs is None else ChatLogprobs(self._logprobs)
        return ChatChoice(index, message, self.finish_reason, logprobs)
