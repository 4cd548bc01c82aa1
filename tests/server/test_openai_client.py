"""What the real `openai` client gets: chats and completions, whole and streamed, and everything that it may ask for."""

import json
import math
from typing import Any

import openai
import pytest

from deepzig.engine.llm import LLM
from deepzig.engine.loading import load
from deepzig.engine.sampling import SamplingParams
from tests.server.conftest import serving

STORY = "Once upon a time"
CHAT = [{"role": "user", "content": STORY}]
COLOURS = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "stories", "prompt": STORY, "max_tokens": 12, **options})


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "stories", "messages": CHAT, "max_tokens": 12, **options})


# ---- answers


def test_completion_is_what_the_llm_generates(client: openai.OpenAI, stories: LLM) -> None:
    expected = stories.generate(STORY, SamplingParams(max_tokens=24, temperature=0.0))
    reply = complete(client, max_tokens=24, temperature=0)
    assert reply.choices[0].text == expected.text
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 24


def test_chat_goes_through_the_template(client: openai.OpenAI, stories: LLM) -> None:
    expected = stories.generate(CHAT, SamplingParams(max_tokens=24, temperature=0.0))
    reply = chat(client, max_completion_tokens=24, temperature=0)
    assert reply.choices[0].message.content == expected.text
    assert reply.object == "chat.completion"
    assert reply.system_fingerprint.startswith("fp_")


def test_stream_has_the_shape_that_clients_expect(client: openai.OpenAI) -> None:
    whole = chat(client, temperature=0)
    chunks = list(chat(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert not chunks[-2].choices[0].delta.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content


def test_stream_of_a_completion(client: openai.OpenAI) -> None:
    chunks = list(complete(client, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == complete(client, temperature=0).choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["length"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_prompts_in_every_form(client: openai.OpenAI, stories: LLM) -> None:
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode(STORY)
    texts = [complete(client, prompt=prompt, temperature=0).choices[0].text for prompt in (STORY, ids, [ids], [STORY])]
    assert len(set(texts)) == 1
    reply = complete(client, prompt=[STORY, "The cat"], n=2, temperature=0, max_tokens=6)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text != reply.choices[2].text == reply.choices[3].text
    streamed = [""] * 4
    for chunk in complete(client, prompt=[STORY, "The cat"], n=2, temperature=0, max_tokens=6, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in reply.choices]


def test_parts_and_roles_of_messages(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": "a time"}]
    joined = chat(client, messages=[{"role": "user", "content": "Once upon\na time"}], temperature=0)
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    assert chat(client, messages=messages, temperature=0).choices == joined.choices


# ---- what may be asked for


def test_n_answers(client: openai.OpenAI) -> None:
    reply = chat(client, n=3, seed=1, temperature=1.0)
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) == 3
    assert reply.usage.completion_tokens == 36 and reply.usage.prompt_tokens < 12, "the prompt counts once"
    streamed = ["", "", ""]
    for chunk in chat(client, n=3, seed=1, temperature=1.0, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    texts = [complete(client, seed=seed, temperature=1.0).choices[0].text for seed in (7, 7, -7, 8)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_stop_strings_are_cut_off_and_never_streamed(client: openai.OpenAI) -> None:
    text = complete(client, temperature=0).choices[0].text
    stop = text[8:14]
    reply = complete(client, temperature=0, stop=["no such text", stop])
    assert reply.choices[0].text == text[:8]
    assert reply.choices[0].finish_reason == "stop"
    chunks = list(complete(client, temperature=0, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[:8]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_token_ends_the_answer(client: openai.OpenAI, stories: LLM) -> None:
    assert stories.tokenizer is not None
    ids = stories.generate("Once upon a time", SamplingParams(max_tokens=16, temperature=0.0)).token_ids
    reply = complete(client, temperature=0, max_tokens=16, extra_body={"stop_token_ids": [ids[5]], "ignore_eos": True})
    assert reply.choices[0].text == stories.tokenizer.decode(ids[: ids.index(ids[5]) + 1])
    assert reply.choices[0].finish_reason == "stop"


def test_logit_bias_and_penalties_reach_the_sampler(client: openai.OpenAI, stories: LLM) -> None:
    assert stories.tokenizer is not None
    (token,) = stories.tokenizer.encode(" dog", add_bos=False)
    assert complete(client, logit_bias={str(token): 100}, max_tokens=3).choices[0].text == " dog" * 3
    extra = {"top_k": 1, "min_p": 0.1, "ignore_eos": True}
    free = complete(client, logit_bias={str(token): 15}, extra_body=extra)
    penalised = complete(client, logit_bias={str(token): 15}, frequency_penalty=2, presence_penalty=2, extra_body=extra)
    assert penalised.choices[0].text.count("dog") < free.choices[0].text.count("dog")


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    reply = chat(client, temperature=0, logprobs=True, top_logprobs=3)
    entries = reply.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == reply.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.token == entry.top_logprobs[0].token and len(entry.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-5
    chunks = list(chat(client, temperature=0, logprobs=True, stream=True))
    streamed = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert [(entry.token, entry.logprob) for entry in streamed] == [(entry.token, entry.logprob) for entry in entries]


def test_logprobs_and_echo_of_a_completion(client: openai.OpenAI, stories: LLM) -> None:
    reply = complete(client, temperature=0, logprobs=2, echo=True, max_tokens=4)
    text, logprobs = reply.choices[0].text, reply.choices[0].logprobs
    assert text.startswith(STORY)
    assert "".join(logprobs.tokens) == text
    assert all(text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True))
    ids = stories.encode(STORY).tolist()
    rows = stories.logits(ids).astype(float)
    logprob = rows[0, ids[1]] - math.log(sum(map(math.exp, rows[0])))
    assert abs(logprobs.token_logprobs[0] - logprob) < 1e-3, "of the first word, given the BOS token"
    chosen = [max(top.values()) for top in logprobs.top_logprobs[-4:]]
    assert logprobs.token_logprobs[-4:] == chosen, "greedy: each token is the likeliest"


def test_offsets_of_a_text_that_goes_on_with_a_space(
    client: openai.OpenAI, stories: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer puts a space before a text, as SentencePiece does."""
    monkeypatch.setattr(stories.tokenizer, "strips_leading_space", True)
    choice = complete(client, prompt="Once upon a", temperature=0, logprobs=0, echo=True, max_tokens=2).choices[0]
    assert choice.text.startswith("Once upon a time")
    assert choice.logprobs.text_offset[-2:] == [len("Once upon a"), len("Once upon a time")]


def test_prompt_alone_can_be_scored(client: openai.OpenAI) -> None:
    reply = complete(client, logprobs=1, echo=True, max_tokens=0)
    assert reply.choices[0].text == STORY
    assert len(reply.choices[0].logprobs.token_logprobs) == 4
    assert reply.usage.completion_tokens == 0


@pytest.mark.parametrize("with_bos", [True, False])
def test_logprobs_line_up_with_the_ids_sent(client: openai.OpenAI, stories: LLM, with_bos: bool) -> None:
    assert stories.tokenizer is not None and stories.tokenizer.bos_token_id is not None
    (eos,) = stories.defaults.eos_token_ids
    ids = [*stories.tokenizer.encode(STORY, add_bos=with_bos), stories.tokenizer.bos_token_id]
    options = {"prompt": ids, "logprobs": 1, "echo": True, "max_tokens": 1, "logit_bias": {str(eos): 100}}
    choice = complete(client, **options).choices[0]
    assert choice.text == STORY and choice.finish_reason == "stop"
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(ids) + 1 and "".join(logprobs.tokens) == STORY
    assert logprobs.tokens[-2:] == ["", ""] and logprobs.text_offset[-2:] == [len(STORY)] * 2
    scored = stories.prompt_logprobs([*ids, eos])
    assert logprobs.token_logprobs == [None, *(pytest.approx(entry.logprob, abs=1e-3) for entry in scored)]
    streamed = [chunk.choices[0].logprobs for chunk in complete(client, **options, stream=True)]
    assert [token for part in streamed if part for token in part.tokens] == logprobs.tokens


def test_offsets_within_characters(client: openai.OpenAI) -> None:
    text = "A cat \N{CAT FACE}\N{CAT FACE} said \N{GRINNING FACE}."
    logprobs = complete(client, prompt=text, logprobs=0, echo=True, max_tokens=0).choices[0].logprobs
    assert logprobs.tokens.count("\ufffd") == 12, "each of four bytes"
    pairs = list(zip(logprobs.tokens, logprobs.text_offset, strict=True))
    assert [offset for token, offset in pairs if token == "\ufffd"] == [6] * 4 + [7] * 4 + [14] * 4
    assert all(text[offset:].startswith(token) for token, offset in pairs if token != "\ufffd")


def test_the_token_that_came_is_among_the_top(client: openai.OpenAI, stories: LLM) -> None:
    assert stories.tokenizer is not None
    (token,) = stories.tokenizer.encode(" dog", add_bos=False)
    logprobs = complete(client, logit_bias={str(token): 100}, logprobs=2, max_tokens=2).choices[0].logprobs
    for top, logprob in zip(logprobs.top_logprobs, logprobs.token_logprobs, strict=True):
        assert len(top) == 3 and top[" dog"] == logprob == min(top.values())


def test_cached_tokens_are_told_in_both_ways(client: openai.OpenAI) -> None:
    prompt = "The little girl had a red ball and a blue kite. " * 8
    complete(client, prompt=prompt, max_tokens=1)
    usage = complete(client, prompt=prompt, max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens
    salted = complete(client, prompt=prompt, max_tokens=1, extra_body={"cache_salt": "mine"}).usage
    assert salted.prompt_cache_hit_tokens == 0, "another salt, another cache"


def test_progress_of_the_prompt(client: openai.OpenAI) -> None:
    prompt = "One day a cat saw a dog. " * 60
    chunks = list(chat(client, messages=[{"role": "user", "content": prompt}], stream=True, max_tokens=2,
                       extra_body={"return_progress": True, "cache_salt": "progress"}))  # fmt: skip
    reports = [chunk.prompt_progress for chunk in chunks if hasattr(chunk, "prompt_progress")]
    assert reports, "a prompt of many pieces is reported"
    assert [report["processed"] for report in reports] == sorted(report["processed"] for report in reports)
    assert reports[-1]["total"] > 400 and {"cache", "time_ms", "queue_position"} <= reports[-1].keys()


# ---- answers of a form


def test_json_object(client: openai.OpenAI) -> None:
    reply = chat(client, response_format={"type": "json_object"}, max_tokens=200, seed=2, temperature=1.0)
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    else:
        assert reply.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(client: openai.OpenAI, stream: bool) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": COLOURS}}
    reply = chat(client, response_format=response_format, max_tokens=80, n=2, temperature=1.2, stream=stream)
    if stream:
        texts = ["", ""]
        for chunk in reply:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = [choice.message.content for choice in reply.choices]
    for text in texts:
        value = json.loads(text)
        assert value["colour"] in ("red", "blue") and 0 <= value["count"] <= 9


@pytest.mark.parametrize(
    "extra",
    [
        {"grammar": 'root ::= "yes" | "no"'},
        {"grammar": 'start: "yes" | "no"'},
        {"regex": "yes|no"},
    ],
)
def test_grammars(client: openai.OpenAI, extra: dict[str, str]) -> None:
    reply = complete(client, extra_body=extra)
    assert reply.choices[0].text in ("yes", "no") and reply.choices[0].finish_reason == "stop"


def test_typed_parsing_of_the_client(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Animal(BaseModel):
        legs: int
        is_big: bool

    reply = client.chat.completions.parse(model="stories", messages=CHAT, response_format=Animal, max_tokens=100)
    assert isinstance(reply.choices[0].message.parsed, Animal)


# ---- errors, timeouts, retries


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="gpt-5")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert caught.value.request_id


def test_too_long_a_prompt(client: openai.OpenAI) -> None:
    """LiteLLM and LangChain know such an error by the words "prompt is too long" alone."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="cat " * 2000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    assert "the prompt is too long: it has " in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="", input="cat " * 2000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input"
    assert "the prompt is too long: it has " in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "cat " * 2000}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    assert "the prompt is too long: it has " in caught.value.message


def test_max_tokens_is_clamped_to_the_context(client: openai.OpenAI, stories: LLM) -> None:
    reply = complete(client, max_tokens=10**12, temperature=0, stop="the")
    assert reply.choices[0].finish_reason == "stop"


def test_timeout_of_the_client_ends_the_request(client: openai.OpenAI, server: Any) -> None:
    with pytest.raises(openai.APITimeoutError):
        complete(client.with_options(timeout=0.05), max_tokens=1000, extra_body={"ignore_eos": True})
    server.wait_until_idle()


def test_full_queue_is_retried(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepzig.errors import QueueFullError

    submit, failures = server.llm.submit, [2]

    def refuse_twice(*args: Any, **kwargs: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise QueueFullError("the queue is full; try again later")
        return submit(*args, **kwargs)

    monkeypatch.setattr(server.llm, "submit", refuse_twice)
    monkeypatch.setattr("deepzig.server.failures.RETRY_QUEUE_S", 0)
    with server.openai(max_retries=2) as client:
        assert complete(client, max_tokens=2).usage.completion_tokens == 2
    failures[0] = 1
    with server.openai(max_retries=0) as client, pytest.raises(openai.RateLimitError) as caught:
        complete(client)
    assert caught.value.response.headers["retry-after"] == "0" and caught.value.code == "queue_full"


# ---- habits of other clients


def test_list_of_models(client: openai.OpenAI, stories: LLM) -> None:
    (model,) = client.models.list().data
    assert model.id == "stories" and model.owned_by == "deepzig"
    assert model.meta["n_ctx"] == stories.config.max_position_embeddings and model.meta["format"] == "int8"
    assert model.meta["size"] > 10_000_000
    assert client.models.retrieve("stories").id == "stories"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


def test_the_context_is_that_of_a_small_cache() -> None:
    with load("stories", cache_bytes=1 << 20) as small, serving(small) as server, server.openai() as client:
        (model,) = client.models.list().data
        assert model.max_model_len == model.meta["n_ctx"] == small.n_context < small.config.max_position_embeddings


def test_task_requests_of_open_webui(client: openai.OpenAI) -> None:
    """Titles and tags: other fields than a chat's, a low limit, and a stream switched off by name."""
    reply = chat(
        client, messages=[{"role": "user", "content": "### Task:\nGenerate a concise title."}], stream=False,
        max_completion_tokens=10, extra_body={"metadata": {"task": "title_generation"}, "chat_id": "1", "priority": -1},
    )  # fmt: skip
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_habits_of_llm(server: Any) -> None:
    """`llm` streams with usage, gives null for what it leaves open, and any key."""
    with server.openai(api_key="DUMMY_KEY") as client:
        chunks = list(
            chat(client, stream=True, stream_options={"include_usage": True}, seed=None, stop=None, tool_choice=None)
        )
    assert chunks[-1].usage.total_tokens > 0
