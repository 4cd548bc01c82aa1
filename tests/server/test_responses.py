"""/v1/responses through the real `openai` client: the same answers as a chat, in its own words."""

# ruff: noqa: RUF001

import json
from collections.abc import Callable

import openai
import pytest

from tests.server.conftest import RunningServer

Script = Callable[[RunningServer, str], None]
STORY = "Once upon a time"
CALL = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{"zone": 1}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
TIME = {"type": "function", "name": "get_time", "parameters": {"type": "object"}, "strict": False}

pytestmark = pytest.mark.parametrize("family", ["V3.1"], indirect=True, scope="module")


def test_text_is_that_of_a_chat(talker: RunningServer) -> None:
    with talker.openai() as client:
        chat = client.chat.completions.create(
            model="", messages=[{"role": "user", "content": STORY}], max_tokens=12, temperature=0
        )
        reply = client.responses.create(model="", input=STORY, max_output_tokens=12, temperature=0)
    assert reply.output_text == chat.choices[0].message.content
    assert reply.status == "incomplete" and reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage.output_tokens == 12


def test_stream_opens_fills_and_closes_each_item(talker: RunningServer, script: Script) -> None:
    script(talker, "Hm, well.</think>Yes." + CALL)
    with talker.openai() as client:
        options = {"model": "", "input": STORY, "tools": [TIME], "reasoning": {"effort": "high"}}
        events = list(client.responses.create(**options, stream=True))
        script(talker, "Hm, well.</think>Yes." + CALL)
        whole = client.responses.create(**options)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [e.item.type for e in events if e.type == "response.output_item.added"] == [
        "reasoning",
        "message",
        "function_call",
    ]
    texts = {
        kind: "".join(e.delta for e in events if e.type == f"response.{kind}.delta")
        for kind in ("reasoning_text", "output_text", "function_call_arguments")
    }
    assert texts == {"reasoning_text": "Hm, well.", "output_text": "Yes.", "function_call_arguments": '{"zone": 1}'}
    assert next(e.item for e in events if e.type == "response.output_item.added").status == "in_progress"
    last = events[-1]
    assert last.type == "response.completed"
    strip = {"id", "call_id"}
    shown = [[item.model_dump(exclude=strip) for item in reply.output] for reply in (last.response, whole)]
    assert shown[0] == shown[1]
    assert json.loads(whole.output[2].arguments) == {"zone": 1}


@pytest.mark.parametrize("answer", ["Yes, it is so.", "Hm, well.</think>" + CALL, "Hm</think>So."])
def test_the_item_that_is_cut_is_incomplete(talker: RunningServer, script: Script, answer: str) -> None:
    options = {"model": "", "input": STORY, "tools": [TIME]}
    if "</think>" in answer:
        options["reasoning"] = {"effort": "high"}
    statuses = set()
    for n_tokens in (2, 3, 4, 8, 9):
        options["max_output_tokens"] = n_tokens
        script(talker, answer)
        with talker.openai() as client:
            events = list(client.responses.create(**options, stream=True))
            script(talker, answer)
            whole = client.responses.create(**options)
        done = [e.item.status for e in events if e.type == "response.output_item.done"]
        assert done == [item.status for item in events[-1].response.output] == [item.status for item in whole.output]
        assert set(done[:-1]) <= {"completed"}
        statuses.add((whole.status, done[-1]))
    assert statuses >= {("incomplete", "incomplete")} and ("completed", "incomplete") not in statuses


def test_input_items_become_the_chats_messages(talker: RunningServer) -> None:
    model = talker.service.model
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
    ]
    call = {"id": "c1", "function": {"name": "get_time", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]
    with talker.openai() as client, talker.http() as http:
        reply = client.responses.create(model="", input=items, instructions="Be kind", max_output_tokens=1)
        count = http.post("/tokenize", json={"messages": messages}).json()["count"]
    assert model.tokenizer is not None
    assert reply.usage.input_tokens == count


def test_metadata_comes_back(talker: RunningServer) -> None:
    with talker.openai() as client:
        options = {"model": "", "input": STORY, "max_output_tokens": 1}
        given = {"k" * 64: "v" * 512, **{f"key {index}": "" for index in range(15)}}
        assert client.responses.create(**options, metadata=given).metadata == given
        for bad in ({"k" * 65: ""}, {"k": "v" * 513}, {str(index): "" for index in range(17)}, {"k": 1}):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(**options, metadata=bad)
            assert caught.value.param in ("metadata", "metadata[...]")


def test_schema_and_what_is_refused(talker: RunningServer) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    with talker.openai() as client:
        reply = client.responses.create(
            model="", input=STORY, text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
        )
        assert json.loads(reply.output_text)["n"] in (1, 2)
        for given in (
            {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}},
        ):  # fmt: skip
            with pytest.raises(openai.BadRequestError, match="not stored") as caught:
                client.responses.create(model="", input=STORY, **given)
            assert caught.value.param in given


def test_references_to_items_are_refused_in_words(talker: RunningServer) -> None:
    items = [{"role": "user", "content": STORY}, {"type": "item_reference", "id": "msg_1"}]
    with talker.openai() as client, pytest.raises(openai.BadRequestError, match="send them whole") as caught:
        client.responses.create(model="", input=items)
    assert caught.value.code == "unsupported_value" and caught.value.param == "input"


def test_tools_that_are_no_functions_are_left_out(talker: RunningServer) -> None:
    namespace = {"type": "namespace", "name": "agents", "description": "Agents", "tools": [TIME]}
    foreign = [namespace, {"type": "web_search", "external_web_access": False}]
    options = {"model": "", "input": STORY, "max_output_tokens": 1}
    with talker.openai() as client:
        alone = client.responses.create(**options, tools=[TIME])
        reply = client.responses.create(**options, tools=[*foreign, TIME])
        assert reply.usage.input_tokens == alone.usage.input_tokens
        assert [tool.name for tool in reply.tools] == ["get_time"]
        assert client.responses.create(**options, tools=foreign).tools == []
        for bad in (
            {"tools": [*foreign, TIME], "tool_choice": {"type": "web_search"}},
            {"tools": foreign, "tool_choice": "required"},
            {"tools": [{**TIME, "name": None}]},
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(**options, **bad)
            assert (caught.value.param or "").startswith("tool"), caught.value
