"""Which constraint a request puts on its answer: a schema, a grammar, calls of tools, a reasoning budget.

Called by `chat` and `completions`; calls `text.constraint`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from deepzig.engine.sampling import TokenConstraint
from deepzig.errors import RequestError
from deepzig.server.chat_prompt import ChatPrompt
from deepzig.server.failures import ApiError
from deepzig.server.requests import (
    MAX_SCHEMA_BYTES,
    ChatRequest,
    CompletionRequest,
    NamedToolChoice,
    ResponseFormat,
    SamplingFields,
    Tool,
)
from deepzig.server.served_model import ServedModel
from deepzig.text import constraint as grammar

Compile = Callable[[], TokenConstraint]  # may take seconds; raises ApiError, RequestError for what cannot be used


def completion_constraint(model: ServedModel, request: CompletionRequest) -> Compile | None:
    """Makes what a completion must look like; None: it is free. Raises ApiError, RequestError as `Compile`."""
    return _compiler(model, _own_grammar(request, request.response_format))


def chat_constraint(
    model: ServedModel, request: ChatRequest, prompt: ChatPrompt, budget: int | None
) -> Compile | None:
    """Makes what a chat's answer must look like, after at most `budget` tokens of reasoning where there is any.

    None: it is free, but for what `budget_constraint` says. Raises as above.
    """
    inner = _compiler(model, _tool_grammar(model, request) or _own_grammar(request, request.response_format))
    after = _after_reasoning(model, request, prompt, budget)
    if inner is None or after is None:
        return inner
    return lambda: after(inner())


def budget_constraint(
    model: ServedModel, request: ChatRequest, prompt: ChatPrompt, budget: int | None
) -> TokenConstraint | None:
    """At most `budget` tokens of reasoning, then a free answer. Nothing is compiled, so it is made at once."""
    after = _after_reasoning(model, request, prompt, budget)
    return None if after is None or budget is None else after(None)


def _after_reasoning(
    model: ServedModel, request: ChatRequest, prompt: ChatPrompt, budget: int | None
) -> Callable[[grammar.GrammarConstraint | None], TokenConstraint] | None:
    """Makes a constraint that has effect after the reasoning; None: there is none."""
    think_ids = model.think_ids
    if think_ids is None or not (prompt.in_reasoning or prompt.may_open_reasoning):
        return None
    return lambda inner: grammar.AfterReasoning(
        think_ids,
        model.llm.defaults.eos_token_ids,
        model.llm.config.vocab_size,
        inner,
        budget,
        is_open=prompt.in_reasoning,
        section_id=_section_id(model, request),
    )


def _section_id(model: ServedModel, request: ChatRequest) -> int | None:
    """The token that opens a section of tool calls, if the answer may have one and it ends reasoning."""
    tools = model.answer_format.tools
    if not request.tools or request.tool_choice == "none" or model.tokenizer is None:
        return None
    if tools is None or not tools.ends_reasoning:
        return None
    return model.tokenizer.control_tokens.ids.get(tools.section_open)


@dataclass(frozen=True)
class _Source:
    """A grammar, and the field that it comes from."""

    grammar: grammar.Grammar
    param: str


def _compiler(model: ServedModel, source: _Source | None) -> Callable[[], grammar.GrammarConstraint] | None:
    if source is None:
        return None
    grammars = _grammars(model)

    def compiled() -> grammar.GrammarConstraint:
        try:
            return grammars.compile(source.grammar)
        except RequestError as error:
            raise ApiError(400, str(error), param=source.param, code="invalid_grammar") from error

    return compiled


def _own_grammar(request: SamplingFields, response_format: ResponseFormat | None) -> _Source | None:
    """The grammar of response_format, grammar or regex, of which at most one may be given."""
    rule = _json_rule(response_format)
    if sum(given is not None for given in (rule, request.grammar, request.regex)) > 1:
        raise ApiError(400, "give one of response_format, grammar and regex", param="grammar", code="invalid_value")
    if request.grammar is not None:
        return _Source(grammar.from_text(request.grammar), "grammar")
    if request.regex is not None:
        return _Source(grammar.from_regex(request.regex), "regex")
    return None if rule is None else _Source(grammar.from_rules(rule), "response_format")


def _json_rule(response_format: ResponseFormat | None) -> grammar.Rule | None:
    """The rule of a response_format; None: free text."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return grammar.json_rule(grammar.ANY_OBJECT, strict=True)
    given = response_format.json_schema
    if given is None or given.schema is None:
        raise ApiError(400, "json_schema lacks its schema", param="response_format.json_schema", code="invalid_value")
    _check_size(given.schema, "response_format.json_schema.schema")
    return grammar.json_rule(given.schema, strict=given.strict is True)


def _tool_grammar(model: ServedModel, request: ChatRequest) -> _Source | None:
    """The grammar of an answer that must call, whose calls must fit their schemas, or that may call only once.

    None: it may call as it likes.
    """
    tools, choice = request.tools or [], request.tool_choice or "auto"
    if not tools or choice == "none" or model.answer_format.tools is None:
        return None
    is_free = choice == "auto"
    rule = _json_rule(request.response_format)
    must_fit = not is_free or any(tool.function.strict for tool in tools) or rule is not None
    has_own_grammar = request.grammar is not None or request.regex is not None
    if not must_fit and (has_own_grammar or request.parallel_tool_calls is not False):
        return None
    if has_own_grammar:
        raise ApiError(400, "a grammar cannot be combined with tools", param="grammar", code="invalid_value")
    if isinstance(choice, NamedToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise ApiError(400, f"there is no tool {choice.function.name!r}", param="tool_choice", code="invalid_value")
    several = request.parallel_tool_calls is not False and not isinstance(choice, NamedToolChoice)
    functions = [(tool.function.name, _arguments_rule(tool, must_fit)) for tool in tools]
    calls, rules = grammar.call_rules(model.answer_format.tools, functions, _grammars(model), several=several)
    if not is_free:
        return _Source(grammar.from_rules(calls, rules), "tools")
    rules["calls"] = calls
    rules["answer"] = "TEXT" if rule is None else rule
    rules["TEXT"] = r"/(.|\n)*/"
    start = "TEXT | TEXT calls" if rule is None else "answer | calls"
    return _Source(grammar.from_rules(start, rules), "tools")


def _arguments_rule(tool: Tool, must_fit: bool) -> grammar.Rule:
    parameters = (tool.function.parameters if must_fit else None) or grammar.ANY_OBJECT
    _check_size(parameters, "tools")
    return grammar.json_rule(parameters, strict=tool.function.strict is True)


def _check_size(schema: Mapping[str, Any], param: str) -> None:
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        message = f"the schema is larger than {MAX_SCHEMA_BYTES >> 10} KiB; simplify it"
        raise ApiError(400, message, param=param, code="invalid_value")


def _grammars(model: ServedModel) -> grammar.Grammars:
    if model.grammars is None:
        raise ApiError(400, "this model has no tokenizer, so its answers cannot be constrained", code="invalid_value")
    return model.grammars
