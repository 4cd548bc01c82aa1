"""LLM: load, generate, stream, on the bundled model and on a folder without tokenizer."""

import copy
import json
import os
import pickle
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig._kernels import BuildReport
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.engine import engine_thread
from deepzig.engine import llm as llm_module
from deepzig.engine.prompt_ids import Prompt
from deepzig.engine.request import Request
from deepzig.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DeepzigError,
    NonFiniteLogitsError,
    RequestError,
    TokenizerError,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
GREEDY = SamplingParams(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def stories() -> deepzig.LLM:
    return deepzig.load("stories")


@pytest.fixture(scope="module")
def without_tokenizer() -> deepzig.LLM:
    return deepzig.load(GOLDEN / "v3_classic")


def test_stream_pieces_make_up_the_result(stories: deepzig.LLM) -> None:
    chunks = list(stories.stream("Once upon a time", GREEDY))
    result = chunks[-1].result
    assert result is not None and all(chunk.result is None for chunk in chunks[:-1])
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [token for chunk in chunks for token in chunk.token_ids] == result.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [result.finish_reason]
    assert result.token_ids == stories.generate("Once upon a time", GREEDY).token_ids


def test_a_batch_gives_what_each_prompt_gives_alone(stories: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module, "BATCH_AHEAD", 3)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    prompts = ["Once upon a time", [5, 6, 7], [{"role": "user", "content": "The dragon"}], "A cat", "One day"]
    together = stories.generate_batch((prompt for prompt in prompts), params)
    assert [result.text for result in together] == [stories.generate(prompt, params).text for prompt in prompts]
    assert stories.generate_batch([]) == []
    with pytest.raises(RequestError, match="one text"):
        stories.generate_batch("Once upon a time")


def test_a_batch_waits_where_others_fill_the_queue(stories: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "MAX_WAITING", 1)
    results = stories.generate_batch([[5, 6, number] for number in range(20)], SamplingParams(max_tokens=2))
    assert len(results) == 20


def test_a_batch_of_which_one_fails_leaves_nothing_running(stories: deepzig.LLM) -> None:
    long = SamplingParams(max_tokens=900, ignore_eos=True)
    with pytest.raises(RequestError, match=r"^prompts\[2\]: a token id .* outside the vocabulary"):
        stories.generate_batch(["Once upon a time", "One day", [10**6]], long)
    assert stories.stats().n_running == stories.stats().n_waiting == 0


def test_text_and_its_tokens_give_the_same_answer(stories: deepzig.LLM) -> None:
    assert stories.tokenizer is not None
    ids = stories.tokenizer.encode("Tom had a red ball.")
    assert ids[0] == stories.tokenizer.bos_token_id
    assert stories.generate(ids, GREEDY).token_ids == stories.generate("Tom had a red ball.", GREEDY).token_ids


def test_a_continued_text_keeps_its_spaces(stories: deepzig.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer puts a space before a text, as SentencePiece does: a prompt is the beginning of a text."""
    assert stories.tokenizer is not None
    monkeypatch.setattr(stories.tokenizer, "strips_leading_space", True)
    assert stories.generate("Once upon a", GREEDY).text.startswith(" time")
    assert "".join(chunk.text for chunk in stories.stream("Once upon a", GREEDY)).startswith(" time")
    begun = SamplingParams(max_tokens=2, logit_bias={stories.tokenizer.encode(" time", add_bos=False)[0]: 100})
    assert stories.generate([0], begun).text.startswith("time")


def test_logits_of_a_text_are_those_of_its_tokens(stories: deepzig.LLM) -> None:
    text = "Once upon a time"
    np.testing.assert_array_equal(stories.logits(text), stories.logits(stories.encode(text)))
    np.testing.assert_array_equal(stories.mtp_logits(text), stories.mtp_logits(stories.encode(text)))
    assert stories.prompt_logprobs(text) == stories.prompt_logprobs(stories.encode(text))


def test_type_checkers_of_users_see_the_types() -> None:
    """A wheel has the mark of typed packages, and what `encode` gives is a prompt."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["deepzig"] and (ROOT / "deepzig" / "py.typed").is_file()
    assert np.ndarray in get_args(Prompt)


def test_numba_is_announced_before_it_compiles_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "no working C11 compiler (cc fails)"
    monkeypatch.setattr("deepzig._kernels.build_report", lambda: BuildReport(problem, {}))
    with pytest.warns(RuntimeWarning, match="about a minute, once.*no working C11") as caught:
        deepzig.load("stories")
    assert len(caught) == 1


def test_a_model_is_shown_in_short(stories: deepzig.LLM) -> None:
    assert repr(stories) == "<LLM 'stories', deepseek_v3, 5 layers>"


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied(stories: deepzig.LLM, function: Callable[[deepzig.LLM], Any]) -> None:
    """It could not be closed but for all copies, and another process has no thread of it."""
    with pytest.raises(TypeError, match="each process loads its own"):
        function(stories)


def test_seeded_answers_repeat_and_differ_by_seed(stories: deepzig.LLM) -> None:
    texts = [
        stories.generate("One day", SamplingParams(max_tokens=30, temperature=1.0, seed=s)).text for s in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_max_tokens_ends_with_length(stories: deepzig.LLM) -> None:
    result = stories.generate("Once upon a time", SamplingParams(max_tokens=5, temperature=0.0))
    assert (len(result.token_ids), result.finish_reason) == (5, "length")
    assert result.timings.prompt_tokens == 5 and result.timings.decode_tokens == 4
    assert 0 < result.timings.prompt_s <= result.timings.first_token_s


def test_end_of_sequence_stops_unless_ignored(stories: deepzig.LLM) -> None:
    params = SamplingParams(max_tokens=400, temperature=0.0)
    ended = stories.generate("Once upon a time", params)
    assert ended.finish_reason == "stop" and ended.token_ids[-1] == 1
    assert "end▁of▁sentence" not in ended.text
    n = len(ended.token_ids)
    longer = stories.generate("Once upon a time", SamplingParams(max_tokens=n + 3, temperature=0.0, ignore_eos=True))
    assert longer.token_ids[:n] == ended.token_ids and len(longer.token_ids) == n + 3


@pytest.mark.parametrize("speculation", ["off", "auto"])
def test_a_stop_token_ends_the_answer(stories: deepzig.LLM, speculation: str) -> None:
    params = replace(GREEDY, speculation=speculation)
    whole = stories.generate("Once upon a time", params).token_ids
    stop = whole[7]
    ended = stories.generate("Once upon a time", replace(params, stop_token_ids=np.array([stop, 5]), ignore_eos=True))
    assert ended.token_ids == whole[: whole.index(stop) + 1] and ended.finish_reason == "stop"
    with pytest.raises(RequestError, match="stop_token_ids"):
        stories.submit("Once", SamplingParams(stop_token_ids=[stories.config.vocab_size]))


def test_a_list_of_end_tokens_counts(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    expected = np.load(folder / "expected.npz")
    third = int(expected["greedy"][2])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4_000_000, third], "temperature": 0.0}))
    result = deepzig.load(folder).generate(expected["ids"].tolist())
    first_hit = expected["greedy"].tolist().index(third)
    assert result.token_ids == expected["greedy"][: first_hit + 1].tolist()
    assert result.finish_reason == "stop"


def test_stop_strings_are_held_back_and_never_emitted(stories: deepzig.LLM) -> None:
    whole = stories.generate("Once upon a time", GREEDY).text
    stop = whole[20:27]
    chunks = list(
        stories.stream("Once upon a time", SamplingParams(max_tokens=40, temperature=0.0, stop=(stop, "zzz")))
    )
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert stop not in "".join(chunk.text for chunk in chunks)


def test_logprobs_come_with_each_token(stories: deepzig.LLM) -> None:
    result = stories.generate("Once upon a time", SamplingParams(max_tokens=6, temperature=0.0, logprobs=2))
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)  # greedy: the most likely
        assert entry.logprob <= 0 and len(entry.top) == 2
    assert stories.generate("Once", SamplingParams(max_tokens=2)).logprobs is None


def test_defaults_come_from_generation_config(stories: deepzig.LLM) -> None:
    assert (stories.defaults.temperature, stories.defaults.top_p, stories.defaults.top_k) == (0.8, 0.95, 0)
    settled = stories.defaults.resolve(SamplingParams(top_p=0.5))
    assert (settled.temperature, settled.top_p, settled.top_k) == (0.8, 0.5, 0)


def test_messages_go_through_the_template(stories: deepzig.LLM) -> None:
    assert stories.tokenizer is not None
    asked = stories.generate([{"role": "user", "content": "Once upon a time"}], GREEDY)
    assert asked.token_ids == stories.generate("Once upon a time", GREEDY).token_ids


def test_a_folder_without_tokenizer_takes_token_ids(without_tokenizer: deepzig.LLM) -> None:
    result = without_tokenizer.generate([1, 2, 3], GREEDY)
    assert result.text == "" and len(result.token_ids) <= 40
    with pytest.raises(RequestError, match="tokenizer"):
        without_tokenizer.generate("text", GREEDY)
    with pytest.raises(RequestError, match="tokenizer"):
        without_tokenizer.generate([1], SamplingParams(stop=("x",)))
    with pytest.raises(RequestError, match="template"):
        without_tokenizer.generate([{"role": "user", "content": "hi"}])


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["stories"] / name, folder)
    llm = deepzig.load(folder)
    for prompt in ("Once upon a time", [{"role": "user", "content": "Once upon a time"}]):
        with pytest.raises(TokenizerError, match="do not belong together"):
            llm.generate(prompt, GREEDY)


@pytest.mark.parametrize(
    "prompt", [[], [-1], [10**9], [[1]], [[1, 2], [3]], [1.5], np.zeros((1, 2), int), None, 5, {"role": "user"}]
)
def test_impossible_prompts_are_refused(without_tokenizer: deepzig.LLM, prompt: Any) -> None:
    with pytest.raises(RequestError):
        without_tokenizer.generate(prompt, GREEDY)


def test_prompts_beyond_the_context_are_refused_and_answers_end_there(stories: deepzig.LLM) -> None:
    limit = stories.config.max_position_embeddings
    with pytest.raises(ContextLengthError, match=str(limit)):
        stories.generate([5] * limit, GREEDY)
    result = stories.generate([5] * (limit - 3), SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True))
    assert (len(result.token_ids), result.finish_reason) == (3, "length")


def test_a_stream_may_be_closed_early(stories: deepzig.LLM) -> None:
    stream = stories.stream("Once upon a time", GREEDY)
    first = next(stream)
    stream.close()
    assert first.token_ids == stories.generate("Once upon a time", GREEDY).token_ids[:1]


def test_nan_weights_fail_the_request(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_new_dialect", tmp_path / "model")
    header_bytes = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    entry = json.loads(raw[8 : 8 + header_bytes])["model.norm.weight"]
    begin = 8 + header_bytes + entry["data_offsets"][0]
    raw[begin : begin + 4] = np.float32(np.nan).tobytes()
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(NonFiniteLogitsError):
        deepzig.load(folder).generate([1, 2], GREEDY)


def test_the_cache_is_as_large_as_asked_for() -> None:
    llm = deepzig.load("stories", cache_bytes=1_000_000)
    page_bytes = 64 * llm.model.make_cache(0).bytes_per_token
    assert llm.stats().n_pages == 1_000_000 // page_bytes
    with pytest.raises(ContextLengthError, match=r"^the prompt is too long: .* room"):
        llm.generate([5] * (64 * llm.stats().n_pages), GREEDY)
    with pytest.raises(RequestError, match="cache_bytes"):
        deepzig.load("stories", cache_bytes=page_bytes - 1)


def test_loading_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder and no name"):
        deepzig.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no folder and no name"):
        deepzig.load("x" * 300)
    with pytest.raises(DeepzigError, match=r"config\.json"):
        deepzig.load(tmp_path)
    with pytest.raises(RequestError, match="precision"):
        deepzig.load("stories", precision="double")


@pytest.mark.parametrize(
    "options",
    [
        {"n_threads": 0}, {"n_threads": 1025}, {"n_threads": "2"}, {"n_threads": 1.5}, {"cache_bytes": 1e9},
        {"cache_bytes": "1G"}, {"cache_bytes": True}, {"cache_dtype": ["f32"]}, {"prompt_cache": 5}, {"model": None},
    ],
)  # fmt: skip
def test_arguments_of_load_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(RequestError, match=name):
        deepzig.load(**{"model": "stories", **options})


def test_numbers_of_load_may_be_those_of_numpy() -> None:
    with deepzig.load("stories", n_threads=np.int64(1), cache_bytes=np.int32(1_000_000)) as llm:
        assert llm.stats().n_pages > 0
        assert len(llm.submit([1, 2], SamplingParams(max_tokens=1), priority=np.int64(1)).result().token_ids) == 1


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(DeepzigError, match="no regular file"):
        deepzig.load(folder)


def test_a_generation_config_is_small_and_names_tokens(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        deepzig.load(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match="eos_token_id 'x'"):
        deepzig.load(folder)


def test_a_cancelled_request_tells_its_timings(stories: deepzig.LLM) -> None:
    endless = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True)
    generation = stories.submit("Tom had a red ball.", endless)
    assert generation.timings is None
    tokens: list[int] = []
    while len(tokens) < 5:
        generation.wait(60)
        tokens += [token for chunk in generation.poll() for token in chunk.token_ids]
    generation.cancel()
    timings = generation.timings
    assert timings is not None
    assert (timings.decode_tokens, timings.prompt_tokens) == (len(tokens) - 1, 7)
    assert timings.decode_s > 0 and generation.n_dropped == 0


def test_a_wait_ends_without_news(stories: deepzig.LLM) -> None:
    generation = stories.submit("Tom", SamplingParams(max_tokens=1))
    assert generation.result().finish_reason == "length"
    generation.wait(0.01)
    assert generation.poll() == []


def test_the_context_is_that_of_a_small_cache(stories: deepzig.LLM) -> None:
    assert stories.n_context == stories.config.max_position_embeddings == 1024
    with deepzig.load("stories", cache_bytes=1 << 20) as small:
        assert small.n_context % 64 == 0 and 64 <= small.n_context < 1024


def test_one_token_has_no_second_after_it(stories: deepzig.LLM) -> None:
    assert stories.mtp_logits([5]).shape == (0, stories.config.vocab_size)


@pytest.mark.parametrize("name", ["logits", "prompt_logprobs", "mtp_logits", "trace"])
def test_whole_sequences_may_exceed_the_context(stories: deepzig.LLM, name: str) -> None:
    with pytest.warns(UserWarning, match="1025 tokens, but the context holds 1024") as caught:
        getattr(stories, name)([5] * 1025)
    assert len(caught) == 1
    getattr(stories, name)([5] * 1024)


@pytest.mark.filterwarnings("ignore:the sequence has 1500 tokens")
@pytest.mark.parametrize(
    "ask", [lambda llm: llm.logits([5] * 40, chunk_size=10), lambda llm: llm.mtp_logits([5] * 1500)]
)
def test_others_are_served_between_chunks(
    stories: deepzig.LLM, ask: Callable[[deepzig.LLM], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    forward, submit = stories.model.forward, stories._thread.engine.submit

    def compute(*args: Any, **more: Any) -> np.ndarray:
        if not order:
            stories.submit([5], SamplingParams(max_tokens=1))
        order.append("chunk")
        return forward(*args, **more)

    def arrive(request: Request) -> None:
        order.append("other")
        submit(request)

    monkeypatch.setattr(stories.model, "forward", compute)
    monkeypatch.setattr(stories._thread.engine, "submit", arrive)
    ask(stories)
    assert order[:3] == ["chunk", "other", "chunk"]


def test_arguments_that_mean_nothing_are_refused(stories: deepzig.LLM) -> None:
    for call in (
        lambda: stories.logits([1, 2], chunk_size=0),
        lambda: stories.logits([1, 2], chunk_size=1.5),  # type: ignore[arg-type]
        lambda: stories.prompt_logprobs([1, 2], n_top=-1),
        lambda: stories.submit([1, 2], {"max_tokens": 3}),  # type: ignore[arg-type]
        lambda: stories.submit([1, 2], priority="high"),  # type: ignore[arg-type]
        lambda: stories.submit([1, 2], priority=float("nan")),  # type: ignore[arg-type]
        lambda: stories.submit([1, 2], tenant=["a"]),  # type: ignore[arg-type]
    ):
        with pytest.raises(RequestError):
            call()
