"""The plugin for `llm`: its models, options, conversations and errors, in the real llm."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llm
import pytest

import deepzig
from deepzig.errors import CheckpointError, RequestError
from deepzig.llm_plugin import Deepzig, loaded, register_models
from deepzig.text import resumed_tokens
from tests.talkers import TEMPLATES, make_talker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def stories() -> Deepzig:
    return Deepzig("deepzig/stories", "stories")


@pytest.fixture
def run_llm(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The program, with deepzig as its only plugin and a user's folder of its own."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        alone = {"LLM_LOAD_PLUGINS": "deepzig", "LLM_USER_PATH": str(tmp_path / "llm")}
        command = [sys.executable, "-m", "llm", *arguments]
        return subprocess.run(
            command, env=os.environ | alone | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    return run


def test_answers_are_those_of_deepzig(stories: Deepzig) -> None:
    response = stories.prompt("Once upon a time", temperature=0, max_tokens=12)
    params = deepzig.SamplingParams(temperature=0, max_tokens=12)
    with deepzig.load("stories") as model:
        expected = model.generate([{"role": "user", "content": "Once upon a time"}], params)
    assert response.text() == expected.text
    assert (response.usage().input, response.usage().output) == (expected.timings.prompt_tokens, 12)
    assert response.response_json["finish_reason"] == "length"


def test_answers_stream(stories: Deepzig) -> None:
    pieces = list(stories.prompt("Once upon a time", temperature=0, max_tokens=12))
    assert len(pieces) > 8


def test_options_reach_the_sampler(stories: Deepzig) -> None:
    told = [stories.prompt("Once", seed=seed, temperature=1.5, max_tokens=20).text() for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
    assert "the" not in stories.prompt("Once upon a time", temperature=0, max_tokens=40, stop="the").text()
    with pytest.raises(RequestError, match="top_p"):
        stories.prompt("Once", top_p=2.0).text()


def test_a_conversation_is_not_read_again(stories: Deepzig) -> None:
    conversation = stories.conversation()
    first = conversation.prompt("Once upon a time", temperature=0, max_tokens=30)
    first.text()
    second = conversation.prompt("The end was", temperature=0, max_tokens=10)
    assert second.text()
    timings = second.response_json["timings"]
    read_before = first.usage().input + first.usage().output - 1  # the last token was said, not read
    assert timings["cached_tokens"] == read_before == second.usage().details["cached_tokens"]
    assert timings["prompt_tokens"] > read_before


def test_another_thread_may_end_its_answer_meanwhile(stories: Deepzig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stories.prompt("Once upon a time", temperature=0, max_tokens=12).text()
    original = resumed_tokens._common

    def interrupted(left: str, right: str) -> int:
        loaded("stories")[1][:] = [5] * 100  # while a prompt is compared with what was known
        return original(left, right)

    monkeypatch.setattr(resumed_tokens, "_common", interrupted)
    assert stories.prompt("Once upon a time", temperature=0, max_tokens=12).text() == expected


def test_thoughts_are_told_apart(tmp_path: Path) -> None:
    thinker = Deepzig("deepzig", str(make_talker(tmp_path, TEMPLATES["R1"])))
    response = thinker.prompt("Hello", temperature=0, max_tokens=8)
    events = list(response.stream_events())
    assert {event.type for event in events} == {"reasoning"}  # the template opens them, and nobody closes them
    assert response.text() == ""


def test_without_a_template_texts_go_on(tmp_path: Path) -> None:
    plain = Deepzig("deepzig", str(make_talker(tmp_path, None)))
    with deepzig.load("stories") as model:
        expected = model.generate("Once upon a time", deepzig.SamplingParams(temperature=0, max_tokens=8)).text
    assert plain.prompt("Once upon a time", temperature=0, max_tokens=8).text() == expected


def test_another_checkpoint_by_option(stories: Deepzig) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        stories.prompt("Once", checkpoint="./nowhere").text()


def test_model_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZIG_MODEL", "./nowhere")
    models: list[llm.Model] = []
    register_models(models.append)
    assert [model.model_id for model in models] == ["deepzig", "deepzig/stories"]
    with pytest.raises(CheckpointError, match="nowhere"):
        models[0].prompt("Once").text()
    assert models[1].prompt("Once", max_tokens=2).text()


def test_the_program_finds_it_and_keeps_conversations(
    run_llm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    cache = {"DEEPZIG_PROMPT_CACHE": str(tmp_path / "prompts")}
    greedy = ("-o", "temperature", "0", "-o", "max_tokens", "30")
    first = run_llm("-m", "deepzig/stories", "Once upon a time", *greedy, **cache)
    assert (first.returncode, first.stderr) == (0, "") and "Lily" in first.stdout
    second = run_llm("-c", "The end was", *greedy, **cache)
    assert second.returncode == 0, second.stderr
    logged = json.loads(run_llm("logs", "--json", "-n", "1").stdout)
    assert logged[0]["model"] == "deepzig/stories"
    assert logged[0]["response_json"]["timings"]["cached_tokens"] > 25


def test_an_error_is_a_line(run_llm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_llm("-m", "deepzig", "Once", "-o", "checkpoint", "./nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: './nowhere' is no folder") and done.stderr.count("\n") == 1


def test_listing_models_does_not_load_the_engine() -> None:
    code = "import sys, llm; llm.get_model('deepzig/stories'); print('deepzig.engine' in sys.modules)"
    environment = os.environ | {"LLM_LOAD_PLUGINS": "deepzig"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_it_stays_short_and_is_loaded_by_llm_alone() -> None:
    assert len((ROOT / "deepzig/llm_plugin.py").read_text(encoding="utf-8").splitlines()) < 100
    code = "import sys, deepzig.cli, deepzig.engine.llm; print('llm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
