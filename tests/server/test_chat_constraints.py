"""Which answers the constraint of a chat allows, token by token, whatever the model would like to say."""

# ruff: noqa: RUF001

from typing import Any

import msgspec
import pytest

from deepzig.server.chat import plan_chat
from deepzig.server.failures import ApiError
from deepzig.server.requests import ChatRequest
from deepzig.server.responses import prepare_response
from deepzig.server.responses_protocol import ResponsesRequest
from deepzig.text.answer_parser import Content
from tests.server.conftest import RunningServer

USER = [{"role": "user", "content": "Hi"}]
TIME = {"type": "function", "function": {"name": "get_time", "strict": True}}
CALL_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
)
CALL_K2 = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{}"
    "<|tool_call_end|><|tool_calls_section_end|>"
)
JSON_OBJECT = {"response_format": {"type": "json_object"}}


def fits(talker: RunningServer, text: str, **body: Any) -> bool:
    """Whether the answer to a chat may be `text`; marks in it are control tokens."""
    model = talker.service.model
    assert model.tokenizer is not None
    request = msgspec.convert({"messages": USER, **body}, ChatRequest)
    ask = plan_chat(model, request, "").ask
    constraint = ask.constraint if ask.compile_constraint is None else ask.compile_constraint()
    if constraint is None:
        return True
    for token in model.tokenizer.encode(text, add_bos=False):
        if constraint.is_complete or not constraint.allowed()[token]:
            return False
        constraint.accept(token)
        constraint = constraint.copy()
    return constraint.is_complete or bool(constraint.allowed()[list(model.llm.defaults.eos_token_ids)].any())


@pytest.mark.parametrize("family", ["V2.5", "K2"], indirect=True, scope="module")
def test_a_quoted_call_passes_the_form_as_text(talker: RunningServer, family: str) -> None:
    """The form forbids the tokens of a call that does not fit, and text that spells them is none."""
    loose = {"type": "function", "function": {"name": "get_time"}}
    call = (CALL_K2 if family == "K2" else CALL_V3).replace("get_time", "get_tide")
    bodies: list[tuple[str, dict[str, Any]]] = [
        (f"Hi {call}{call}", {"tools": [TIME], "parallel_tool_calls": False}),
        (msgspec.json.encode({"html": call}).decode(), {"tools": [loose], **JSON_OBJECT}),
    ]
    model = talker.service.model
    assert model.tokenizer is not None
    for text, body in bodies:
        plan = plan_chat(model, msgspec.convert({"messages": USER, **body}, ChatRequest), "")
        assert plan.ask.compile_constraint is not None and not fits(talker, text, **body)
        constraint = plan.ask.compile_constraint()
        ids = model.tokenizer.encode(text, add_bos=False, allow_special=False)
        for token in ids:
            assert constraint.allowed()[token]
            constraint.accept(token)
        parser = plan.parser()
        assert parser.push(text, ids) + parser.finish() == [Content(text)]


@pytest.mark.parametrize("family", ["R1-0528"], indirect=True, scope="module")
def test_a_model_that_opens_thoughts_itself_may_think_before_a_form(talker: RunningServer) -> None:
    for form, good, bad in (
        (JSON_OBJECT, "{}", "Yes."),
        ({"tools": [TIME]}, f"Look.{CALL_V3}", "Look.<｜tool▁calls▁begin｜>"),
        ({"tools": [TIME], "tool_choice": "required"}, CALL_V3, "Yes."),
    ):
        for thoughts in ("", "<think>\nHm.\n</think>"):
            assert fits(talker, thoughts + good, **form)
            assert not fits(talker, thoughts + bad, **form)
        assert not fits(talker, "<think>Hm", **form), "thoughts must end"
        assert not fits(talker, good + "<think></think>", **form)


@pytest.mark.parametrize("family", ["R1-0528"], indirect=True, scope="module")
def test_the_budget_holds_for_thoughts_that_the_model_opens(talker: RunningServer) -> None:
    for switch in ({"thinking_token_budget": 0}, {"enable_thinking": False}):
        request = msgspec.convert({"messages": USER, **switch}, ChatRequest)
        assert plan_chat(talker.service.model, request, "").ask.compile_constraint is None, "it waits for no grammar"
        assert fits(talker, "<think></think>Yes.", **switch)
        assert fits(talker, "Yes.", **switch)
        for blank in ("", "\n", " ", "\u3000"):  # the parser takes thoughts for such behind it as well
            assert not fits(talker, f"{blank}<think>Hm</think>Yes.", **switch)


@pytest.mark.parametrize("family", ["K2-Thinking"], indirect=True, scope="module")
def test_calls_may_end_thoughts_if_the_form_allows_calls(talker: RunningServer) -> None:
    broken = CALL_K2.replace("get_time", "get_tide")
    for form in ({"tools": [TIME]}, {"tools": [TIME], "tool_choice": "required"}):
        assert fits(talker, f"<think>Hm{CALL_K2}", **form)
        assert not fits(talker, f"<think>Hm{broken}", **form)
    loose = {"type": "function", "function": {"name": "get_time"}}
    assert fits(talker, "<think>Hm</think>Yes", tools=[loose], regex="Yes")
    assert not fits(talker, f"<think>Hm{CALL_K2}", tools=[loose], regex="Yes"), "the form has no calls"


@pytest.mark.parametrize("family", ["R1"], indirect=True, scope="module")
def test_calls_do_not_end_thoughts_but_in_the_format_of_kimi(talker: RunningServer) -> None:
    for choice in ("auto", "required"):
        form = {"tools": [TIME], "tool_choice": choice}
        assert not fits(talker, f"Hm{CALL_V3}", **form), "thoughts must end"
        assert fits(talker, f"Hm{CALL_V3} not so.</think>{CALL_V3}", **form)


@pytest.mark.parametrize("family", ["V3.1"], indirect=True, scope="module")
def test_thoughts_that_the_prompt_closes_are_not_opened_again(talker: RunningServer) -> None:
    assert fits(talker, "{}", **JSON_OBJECT)
    assert not fits(talker, "<think></think>{}", **JSON_OBJECT)


@pytest.mark.parametrize("family", ["K2-Thinking"], indirect=True, scope="module")
def test_an_answer_that_has_begun_opens_no_thoughts(talker: RunningServer) -> None:
    begun = [*USER, {"role": "assistant", "content": "{", "prefix": True}]
    assert fits(talker, "{}", **{**JSON_OBJECT, "messages": begun})
    assert not fits(talker, "<think></think>{}", **{**JSON_OBJECT, "messages": begun})


@pytest.mark.parametrize("family", ["V2.5"], indirect=True, scope="module")
def test_an_answer_without_parallel_calls_has_one_call(talker: RunningServer) -> None:
    """Its arguments may be any: only those of strict tools fit their schemas."""
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?<=a)b"}}, "required": ["a"]}
    loose = {"type": "function", "function": {"name": "get_time", "parameters": parameters}}
    call = CALL_V3.removeprefix("<｜tool▁calls▁begin｜>").removesuffix("<｜tool▁calls▁end｜>")
    for n_calls in (0, 1, 2):
        calls = "\n".join([call] * n_calls)
        answer = "Look." + (f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if calls else "")
        assert fits(talker, answer, tools=[loose])
        assert fits(talker, answer, tools=[loose], parallel_tool_calls=False) is (n_calls < 2)
    assert fits(talker, "Yes", tools=[loose], parallel_tool_calls=False, regex="Yes"), "no calls at all"


@pytest.mark.parametrize("family", ["V2.5"], indirect=True, scope="module")
def test_schemas_are_taken_to_the_letter_only_if_they_are_strict(talker: RunningServer) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    model = talker.service.model
    for strict in (None, False, True):
        function = {"name": "get_time", "parameters": {"type": "object", "properties": {"a": schema}}, "strict": strict}
        bodies: list[dict[str, Any]] = [
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}},
            {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        ]
        form: Any = {"type": "json_schema", "name": "a", "schema": schema, "strict": strict}
        if strict:
            for body in bodies:
                with pytest.raises(ApiError, match="uniqueItems"):
                    fits(talker, "", **body)
            body = {"input": "a", "text": {"format": form}}
            ask, _ = prepare_response(model, msgspec.convert(body, ResponsesRequest), "")
            assert ask.compile_constraint is not None
            with pytest.raises(ApiError, match="uniqueItems"):
                ask.compile_constraint()
        else:
            assert fits(talker, "[1,2]", **bodies[0]) and not fits(talker, '["a"]', **bodies[0])
            assert fits(talker, CALL_V3.replace("{}", '{"a":[1]}'), **bodies[1])
            assert not fits(talker, CALL_V3.replace("{}", '{"a":["a"]}'), **bodies[1])
