"""What the server does with requests that it cannot serve: status, OpenAI's error body, no 5xx by a client's fault."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deepzig.checkpoint.model_names import BUNDLED
from deepzig.engine.llm import LLM
from deepzig.engine.loading import load
from deepzig.engine.sampling import TokenLogprob
from deepzig.server.body import decode
from deepzig.server.failures import ApiError
from deepzig.server.logprobs import CompletionScores
from deepzig.text import worker_process
from deepzig.text.tokenizer import load_tokenizer
from tests.server.conftest import RunningServer, serving
from tests.talkers import make_talker

CHAT = {"messages": [{"role": "user", "content": "One"}], "max_tokens": 1}
COMPLETION = {"prompt": "One", "max_tokens": 1}


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx2.Client]:
    with server.http() as http:
        yield http


def check_error(reply: httpx2.Response, status: int, code: str | None = None, param: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"text"', b"5", b"{", b"\xef\xbb\xbf{}", b"\xff\xfe", b'{"messages": NaN}', b"[" * 100000],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"])
def test_bodies_that_are_no_json_object(http: httpx2.Client, path: str, body: bytes) -> None:
    check_error(http.post(path, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (r"a\ud83d b", 3), (r"a\ud83d", 3), (r"\udc00 b", 2), (r"\ud83d\u0041bcdefgh", 2), (r"\\\ud83d", 4),
        (r"\ud83d\ude80\uD83D\ud83d\ude80", 14), (r"\\ud83d \u00zz", None), (r"\ud83d\ude80 \u00zz", None),
        (r"\ud7ff \ue000 \q", None),
    ],
)  # fmt: skip
def test_half_a_surrogate_pair_is_told_from_other_malformed_json(text: str, at: int | None) -> None:
    told = "the body is no JSON: " if at is None else f"half of a surrogate pair at byte {at}, "
    for body in (f'["{text}"]', f'["{text}"]'.encode()):
        with pytest.raises(ApiError, match=told):
            decode(body, list)


BAD_FIELDS = [
    ("max_tokens", True), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", 1.5),
    ("temperature", -1), ("temperature", "hot"), ("temperature", 1e300), ("top_p", 1.5), ("top_k", -2), ("min_p", 2),
    ("repetition_penalty", 0), ("presence_penalty", 3), ("frequency_penalty", -3), ("seed", 1 << 64), ("seed", 1.5),
    ("n", 0), ("n", 10**6), ("stop", 5), ("stop", [""]), ("stop", ["x"] * 17), ("logit_bias", {"a": 1}),
    ("stop_token_ids", [-1]), ("stop_token_ids", [1] * 129), ("stop_token_ids", 5),
    ("logit_bias", {"5": 101}), ("logit_bias", {str(i): 1 for i in range(2000)}), ("stream", "yes"),
    ("stream_options", []), ("cache_salt", ""), ("priority", 1000), ("grammar", ""),
    ("response_format", {"type": "xml"}),
]  # fmt: skip
BAD_CHAT_FIELDS = [
    ("messages", []), ("messages", "hi"), ("messages", [{"role": "wizard", "content": ""}]), ("top_logprobs", 21),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": "x"}] * 3000), ("top_logprobs", 2),
    ("messages", [{"role": "user", "content": "x", "prefix": True}]), ("tools", [{}] * 200), ("tool_choice", "maybe"),
    ("tools", [{"type": "function", "function": {"name": "no spaces!"}}]), ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}), ("reasoning_effort", "huge"),
    ("response_format", {"type": "json_schema"}), ("chat_template_kwargs", {"messages": []}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
    ("chat_template_kwargs", {"a b": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS + BAD_CHAT_FIELDS)
def test_bad_fields_of_a_chat_are_named(http: httpx2.Client, field: str, value: Any) -> None:
    reply = http.post("/v1/chat/completions", json={**CHAT, field: value})
    check_error(reply, 400)
    assert (reply.json()["error"]["param"] or "").startswith(field) or field in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[case for case in BAD_FIELDS if case != ("max_tokens", 0)],
        ("prompt", 5), ("prompt", []), ("prompt", ["a", 5]), ("prompt", [-1]), ("prompt", [4096]),
        ("prompt", [1 << 70]), ("prompt", [[]]), ("prompt", ["x"] * 100),
        ("suffix", "end"), ("best_of", 3), ("logprobs", 21),
    ],
)  # fmt: skip
def test_bad_fields_of_a_completion(http: httpx2.Client, field: str, value: Any) -> None:
    check_error(http.post("/v1/completions", json={**COMPLETION, field: value}), 400)


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "nonsense": {"a": [1]}, "user": "me", "store": True, "service_tier": "auto"},
        {**CHAT, **dict.fromkeys(("stop", "tools", "tool_choice", "seed", "n", "response_format", "logit_bias"))},
        {**CHAT, "tools": [], "tool_choice": "auto", "top_p": 0, "top_k": 10**30, "stop": []},
        {**CHAT, "temperature": 5e-324, "top_p": 5e-324, "min_p": 5e-324, "presence_penalty": 5e-324},
        {**CHAT, "temperature": 100, "repetition_penalty": 0.01, "logit_bias": {"5": -100}, "max_tokens": 3},
    ],
)
def test_unknown_fields_and_nulls_are_accepted(http: httpx2.Client, body: dict[str, Any]) -> None:
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_long_numbers_and_unusual_unicode(http: httpx2.Client) -> None:
    headers = {"content-type": "application/json"}
    for value in (b"1e999", b"1" * 5000):
        content = b'{"prompt": "x", "temperature": %s}' % value
        check_error(http.post("/v1/completions", content=content, headers=headers), 400)
    lone = b'{"prompt": "\\ud800", "max_tokens": 1}'
    check_error(http.post("/v1/completions", content=lone, headers=headers), 400)
    nul = http.post("/v1/completions", json={"prompt": "\0\U0001f9d1\u200d\U0001f680", "max_tokens": 1})
    assert nul.status_code == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "http://127.0.0.1/schema"},
        {"enum": []},
        {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 5} for i in range(4000)}},
        {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}"} for n in range(20, 30)]},
    ],
    ids=["no such ref", "remote ref", "nothing fits", "large", "explosive"],
)
def test_evil_schemas_are_refused_quickly(http: httpx2.Client, schema: dict[str, Any]) -> None:
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    check_error(http.post("/v1/chat/completions", json={**CHAT, "response_format": response_format}, timeout=20), 400)


def test_a_pattern_that_cannot_be_used_is_refused_if_strict(http: httpx2.Client) -> None:
    for strict, status in ((True, 400), (False, 200)):
        given = {"schema": {"type": "string", "pattern": "(a+"}, "strict": strict}
        body = {**CHAT, "response_format": {"type": "json_schema", "json_schema": given}, "max_tokens": 1}
        assert http.post("/v1/chat/completions", json=body).status_code == status


@pytest.mark.parametrize("pattern", ["(((a{1,99}){1,99}){1,99}){1,99}", "(a+)+$", "(a|b)*c{900}"])
def test_costly_patterns_are_served_within_bounds(http: httpx2.Client, pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = {**CHAT, "response_format": response_format, "max_tokens": 20}
    assert http.post("/v1/chat/completions", json=body, timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grammar", "start: missing"),
        ("grammar", "root ::= ("),
        ("grammar", "root ::= missing"),
        ("regex", "("),
        ("regex", "(?=a)"),
    ],
)
def test_bad_grammars(http: httpx2.Client, field: str, value: str) -> None:
    check_error(http.post("/v1/completions", json={**COMPLETION, field: value}), 400)


@pytest.mark.parametrize(
    "form",
    [
        {"grammar": "root ::= root"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
    ],
)
def test_what_no_text_fits_is_said_in_words(http: httpx2.Client, form: dict[str, Any]) -> None:
    reply = http.post("/v1/completions", json={**COMPLETION, **form})
    check_error(reply, 400)
    assert reply.json()["error"]["message"] == "the schema or grammar cannot be used: no text fits it"


def test_schema_nested_too_deep(http: httpx2.Client) -> None:
    content = json.dumps(CHAT)[:-1] + ', "response_format": ' + '{"a": ' * 5000 + "1" + "}" * 5001
    reply = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    check_error(reply, 400, "invalid_json")


def test_a_bad_key_or_a_long_value_is_named_in_short(http: httpx2.Client) -> None:
    for key in ("-1", "a` - at `$.b"):
        check_error(http.post("/v1/completions", json={**COMPLETION, "logit_bias": {key: 1}}), 400, param="logit_bias")
    for role in ("x" * 100_000, " - at `$.x`\n" * 10_000):
        reply = http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": role, "content": "x"}]})
        check_error(reply, 400, "invalid_value", "messages[0].role")
        assert len(reply.json()["error"]["message"]) < 400


@pytest.mark.parametrize(
    ("path", "field", "kind"), [("chat/completions", "messages", "image_url"), ("responses", "input", "input_image")]
)
def test_a_part_that_is_no_text_is_told_so(http: httpx2.Client, path: str, field: str, kind: str) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, "image_url": {"url": "data:,x"}}]
    reply = http.post(f"/v1/{path}", json={field: [{"role": "user", "content": content}]})
    check_error(reply, 400, "invalid_value", f"{field}[0].content[1].type")
    assert f"'{kind}'; this server reads text only" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("field", "value"), [("logit_bias", {"99999999": 1}), ("stop_token_ids", [1, 99999999])])
def test_tokens_that_there_are_not_name_their_field(http: httpx2.Client, field: str, value: Any) -> None:
    reply = http.post("/v1/completions", json={**COMPLETION, field: value})
    check_error(reply, 400, "invalid_value", field)
    assert "names token 99999999, but" in reply.json()["error"]["message"]


@pytest.mark.parametrize("end", [b"", b'"]}'])
def test_nesting_is_counted_in_one_pass(http: httpx2.Client, end: bytes) -> None:
    """A string of many escapes, with and without its end, after brackets that are to be counted."""
    content = b'{"prompt": [' + b"[], " * 70 + b'"' + b'\\"' * (1 << 17) + end
    headers = {"content-type": "application/json"}
    check_error(http.post("/v1/completions", content=content, headers=headers, timeout=20), 400)


@pytest.mark.parametrize(
    ("body", "is_too_deep"),
    [
        (b"[" * 64 + b"]" * 64, False),
        (b"[" * 65 + b"]" * 65, True),
        (b'["' + b"[" * 100 + b'"]', False),
        (b'["\\"' + b"[" * 100 + b'"]', False),
        (b'["\\\\"' + b", [" * 65 + b"]" * 66, True),
        (b"[" + b"[]," * 100 + b"1]", False),
    ],
)
def test_depth_of_nesting(body: bytes, is_too_deep: bool) -> None:
    if is_too_deep:
        with pytest.raises(ApiError, match="nested"):
            decode(body, list)
    else:
        assert decode(body, list) == json.loads(body)


def test_unknown_routes_and_methods(http: httpx2.Client) -> None:
    for method, path, hint in (
        ("GET", "/v1/nothing", "/openapi.json lists what does"),
        ("POST", "/v1/v1/chat/completions", "/openapi.json lists what does"),
        ("POST", "/v1/embeddings", "this server makes no embeddings"),
        ("GET", "/v1/responses/resp_1", "responses are not stored"),
    ):
        reply = http.request(method, path, json={})
        check_error(reply, 404, "not_found")
        assert reply.json()["error"]["message"] == f"nothing answers {method} '{path}'; {hint}"
    reply = http.get("/v1/chat/completions")
    check_error(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    check_error(http.delete("/v1/models"), 405)


def test_a_slash_at_the_end_changes_nothing(http: httpx2.Client) -> None:
    assert http.post("/v1/completions/", json=COMPLETION).status_code == 200
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert http.get("/models/stories/").json() == http.get("/models/stories").json()
    check_error(http.get("/static/"), 404, "not_found")


def test_tokens_there_and_back(http: httpx2.Client, stories: LLM) -> None:
    text = "Once upon a \U0001f680 time <think>"
    tokens = http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert stories.tokenizer is not None and tokens == stories.tokenizer.encode(text)
    shown = http.post("/detokenize", json={"tokens": tokens}).json()["content"]
    assert shown.endswith(text)
    pieces = http.post("/tokenize", json={"prompt": text, "with_pieces": True, "add_special": False}).json()["tokens"]
    content = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert content.decode() == text
    prompt = http.post("/apply-template", json={"messages": [{"role": "user", "content": text}]}).json()["prompt"]
    assert prompt.endswith(text) and prompt.startswith("<")
    check_error(http.post("/tokenize", json={}), 400)
    check_error(http.post("/detokenize", json={"tokens": [4096]}), 400)
    check_error(http.post("/detokenize", json={"tokens": [-1]}), 400)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/apply-template"])
def test_names_of_template_variables(http: httpx2.Client, path: str) -> None:
    for name in ("messages", "tools", "bos_token", "eos_token", "a b"):
        check_error(http.post(path, json={**CHAT, "chat_template_kwargs": {name: "x"}}), 400)
    for name in ("self", "tokenizer", "room", "variables", "model"):
        assert http.post(path, json={**CHAT, "chat_template_kwargs": {name: "x"}}).status_code == 200


def test_prompts_may_lack_the_beginning_of_an_answer(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{{ ' says' if add_generation_prompt }}"
    with load(make_talker(tmp_path, template)) as llm, serving(llm) as running, running.http() as http:
        for kwargs, prompt in (({}, "One says"), ({"add_generation_prompt": False}, "One")):
            body = {**CHAT, "chat_template_kwargs": kwargs}
            assert http.post("/apply-template", json=body).json()["prompt"] == prompt
        check_error(http.post("/v1/chat/completions", json=body), 400, param="chat_template_kwargs")


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "prompt", "a" * 3_000_000),
        ("/v1/chat/completions", "messages", [{"role": "user", "content": "a" * 3_000_000}]),
        ("/tokenize", "content", "a" * 3_000_000),
        ("/tokenize", "messages", [{"role": "user", "content": "a" * 3_000_000}]),
        ("/apply-template", "messages", [{"role": "user", "content": "a" * 3_000_000}]),
    ],
)
def test_texts_too_long_to_fit_are_refused_before_they_are_tokenized(
    http: httpx2.Client, stories: LLM, monkeypatch: pytest.MonkeyPatch, path: str, field: str, value: Any
) -> None:
    assert stories.tokenizer is not None
    lengths: list[int] = []
    encode = stories.tokenizer._backend.encode
    monkeypatch.setattr(
        stories.tokenizer._backend, "encode", lambda text, special: lengths.append(len(text)) or encode(text, special)
    )
    check_error(http.post(path, json={field: value}), 400, "context_length_exceeded", field)
    assert not lengths


def test_log_probabilities_of_ids_without_a_token(tmp_path: Path) -> None:
    """The model's head may have them, in a gap of the vocabulary as well as after it."""
    folder = shutil.copytree(BUNDLED["stories"], tmp_path / "model")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"]["far"] = 4100
    described["added_tokens"].append({**described["added_tokens"][0], "id": 4100, "content": "far"})
    (folder / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None and tokenizer.vocab_size == 4101
    found = CompletionScores(tokenizer).add([TokenLogprob(id, -1.0, ((4098, -2.0),)) for id in (4097, 313, 4200)])
    assert found.tokens == ["", tokenizer.decode([313]), ""]
    assert found.text_offset == [0, 0, len(found.tokens[1])]


def test_model_without_a_chat_template(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = make_talker(tmp_path_factory.mktemp("bare"), template=None)
    with load(directory) as llm, serving(llm) as running, running.http() as http:
        assert http.post("/v1/completions", json=COMPLETION).status_code == 200
        reply = http.post("/v1/chat/completions", json=CHAT)
        check_error(reply, 400, "no_chat_template")
        assert "/v1/completions" in reply.json()["error"]["message"]


def test_template_process_that_is_killed(
    http: httpx2.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out: not the client's fault, and the next request is served."""
    exchange = worker_process._exchange

    def killed(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
        process.kill()
        return exchange(process, line)

    assert server.service.model.chat_template is not None
    server.service.model.chat_template.render_text(CHAT["messages"])  # starts the process
    with monkeypatch.context() as patched:
        patched.setattr(worker_process, "_exchange", killed)
        reply = http.post("/v1/chat/completions", json=CHAT)
    check_error(reply, 503, "overloaded")
    assert "retry-after" in reply.headers
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_tools_of_a_model_that_has_none(http: httpx2.Client) -> None:
    body = {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}
    check_error(http.post("/v1/chat/completions", json=body), 400, "no_tools", "tools")


def test_request_id_comes_back_if_it_is_sane(http: httpx2.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "my-id.7"}).headers["x-request-id"] == "my-id.7"
    assert http.get("/health", headers={"x-request-id": "<script>"}).headers["x-request-id"].startswith("req_")


def test_metrics_count_what_happened(http: httpx2.Client, server: RunningServer) -> None:
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    refused = 'deepzig_http_requests_total{route="/v1/completions",status="400"}'
    names = ("deepzig_generation_tokens_total", "deepzig_requests_total", refused)
    before = {name: value(name) for name in names}
    http.post("/v1/completions", json={**COMPLETION, "max_tokens": 5, "ignore_eos": True})
    http.post("/v1/completions", json={**COMPLETION, "max_tokens": "five"})
    server.wait_until_idle()
    assert value("deepzig_generation_tokens_total") == before["deepzig_generation_tokens_total"] + 5
    assert value("deepzig_requests_total") == before["deepzig_requests_total"] + 1
    assert value("deepzig_first_token_seconds_count") > 0
    assert value("deepzig_requests_running") == value("deepzig_requests_open") == 0
    assert value(refused) == before[refused] + 1


def test_expert_load_is_counted_if_asked_for(stories: LLM) -> None:
    config = stories.config
    with serving(stories, expert_load=True) as running, running.http() as http:
        before = {row["layer"]: sum(row["counts"]) for row in http.get("/status").json()["expert_load"]}
        body = {**COMPLETION, "max_tokens": 5, "ignore_eos": True, "cache_salt": "experts"}
        n_prompt = http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"]
        rows = http.get("/status").json()["expert_load"]
    assert [row["layer"] for row in rows] == [n for n in range(config.num_hidden_layers) if config.is_moe_layer(n)]
    for row in rows:  # the last token of the answer is not computed; guesses ahead may come on top
        chosen = (sum(row["counts"]) - before[row["layer"]]) // config.num_experts_per_tok
        assert len(row["counts"]) == config.n_routed_experts and chosen >= n_prompt + 4


def test_status(http: httpx2.Client) -> None:
    status = http.get("/status").json()
    assert status["state"] == "ready" and status["running"] == status["queue"] == 0
    assert {"pages", "tokens_per_s", "expert_load", "uptime_s"} <= status.keys()


def test_figures_do_not_wait_for_a_step(http: httpx2.Client, stories: LLM) -> None:
    gate = threading.Event()
    step = threading.Thread(target=lambda: stories._thread.call(lambda: gate.wait(60)))
    step.start()
    try:
        for path in ("/status", "/metrics"):
            assert http.get(path, timeout=10).status_code == 200
    finally:
        gate.set()
        step.join()
