"""What the real `openai` client gets: chats and completions, whole and streamed, and everything that it may ask for."""

import openai
import pytest

from deepzig.engine.llm import LLM
from deepzig.engine.sampling import SamplingParams

STORY = "Once upon a time"
CHAT = [{"role": "user", "content": STORY}]


def test_completion_is_what_the_llm_generates(client: openai.OpenAI, stories: LLM) -> None:
    expected = stories.generate(STORY, SamplingParams(max_tokens=24, temperature=0.0))
    reply = client.completions.create(model="stories", prompt=STORY, max_tokens=24, temperature=0)
    assert reply.choices[0].text == expected.text
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None and reply.usage.completion_tokens == 24


def test_chat_goes_through_the_template(client: openai.OpenAI, stories: LLM) -> None:
    expected = stories.generate(CHAT, SamplingParams(max_tokens=24, temperature=0.0))
    reply = client.chat.completions.create(model="stories", messages=CHAT, max_tokens=24, temperature=0)
    assert reply.choices[0].message.content == expected.text
    assert reply.object == "chat.completion"


def test_stream_has_the_shape_that_clients_expect(client: openai.OpenAI) -> None:
    options = {"model": "stories", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert not chunks[-2].choices[0].delta.content
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 12


def test_stream_of_a_completion(client: openai.OpenAI) -> None:
    options = {"model": "stories", "prompt": STORY, "max_tokens": 12, "temperature": 0}
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == client.completions.create(**options).choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["length"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt=STORY)
    assert caught.value.code == "model_not_found"
