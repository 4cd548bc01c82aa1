"""`deepzig generate` on the bundled model: where the prompt comes from, what goes where, and what fails how."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import deepzig
from deepzig.cli.generate import print_stream
from tests.cli.chats import script, tokens_of
from tests.cli.terminal import TerminalStream

Run = Callable[..., Result]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]
GREEDY = ("--temperature", "0", "--max-tokens", "12")


def shown(result: Result) -> dict[str, Any]:
    """The object that --json printed."""
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_answer_on_stdout_is_the_text_of_the_api(run: Run) -> None:
    result = run("generate", "Once upon a time", *GREEDY)
    params = deepzig.SamplingParams(temperature=0, max_tokens=12)
    expected = deepzig.load("stories").generate("Once upon a time", params)
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"
    assert len(expected.token_ids) == 12


def test_bundled_model_and_statistics_are_on_stderr(run: Run) -> None:
    note, statistics = run("generate", "Once upon a time", *GREEDY).stderr.splitlines()
    assert "'stories'" in note
    assert statistics.startswith("prompt ") and "first token after" in statistics and statistics.count("tok/s") == 2


def test_beams_print_the_best_text_and_its_score(run: Run) -> None:
    options = ("--num-beams", "3", "--length-penalty", "0.5", "--early-stopping", "never", "--max-tokens", "12")
    found = shown(run("generate", "The dog", "--json", *options))
    params = deepzig.SamplingParams(max_tokens=12, num_beams=3, length_penalty=0.5, early_stopping="never")
    expected = deepzig.load("stories").generate("The dog", params).choices[0]
    assert (found["token_ids"], found["score"]) == (expected.token_ids, expected.score)
    assert run("generate", "The dog", *options).stdout == expected.text + "\n"


def test_json_is_one_object_with_everything(run: Run) -> None:
    found = shown(run("generate", "Once upon a time", "--json", *GREEDY))
    assert found.keys() == {"model", "prompt", "text", "token_ids", "finish_reason", "timings"}
    assert (found["model"], found["prompt"], found["finish_reason"]) == ("stories", "Once upon a time", "length")
    assert len(found["token_ids"]) == 12
    assert found["timings"].keys() == {
        "prompt_tokens", "cached_tokens", "prompt_s", "first_token_s", "decode_tokens", "decode_s", "drafted_tokens",
        "accepted_tokens", "speculation_gain",
    }  # fmt: skip
    assert found["text"] + "\n" == run("generate", "Once upon a time", *GREEDY).stdout


def test_json_has_logprobs_when_asked(run: Run) -> None:
    found = shown(run("generate", "Once upon a time", "--json", "--logprobs", "2", *GREEDY))
    assert len(found["logprobs"]) == 12


def test_logprobs_without_json_is_a_usage_error(run: Run) -> None:
    result = run("generate", "Once", "--logprobs", "2")
    assert result.exit_code == 2
    assert "--json" in result.stderr


@pytest.mark.parametrize(
    ("argument", "piped", "expected"),
    [
        ("a cat", None, "a cat"),
        ("a cat", "", "a cat"),
        ("a cat", "Once\n", "Once\na cat"),
        ("-", "Once\r\n", "Once"),
        (None, "two\nlines\n\n", "two\nlines\n"),
        ("ends in a break\n", None, "ends in a break\n"),
        ("", None, ""),
    ],
)
def test_prompt_from_argument_and_stdin(run: Run, argument: str | None, piped: str | None, expected: str) -> None:
    arguments = [] if argument is None else [argument]
    found = shown(run("generate", *arguments, "--json", "--max-tokens", "1", input=piped))
    assert found["prompt"] == expected


def test_file_comes_first(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("in the file\n", encoding="utf-8")
    arguments = ("generate", "argument", "-f", str(file), "--json", "--max-tokens", "1")
    assert shown(run(*arguments, input="piped"))["prompt"] == "in the file\npiped\nargument"


def test_no_prompt_is_a_usage_error(run: Run) -> None:
    result = run("generate")
    assert result.exit_code == 2
    assert "no prompt" in result.stderr and "bundled" not in result.stderr


def test_an_answer_that_was_cut_is_marked(run: Run) -> None:
    assert run("generate", "Once", *GREEDY).stderr.endswith("; cut at --max-tokens 12\n")
    whole = run("generate", "Once", "--stop", "e", *GREEDY).stderr
    assert "tok/s" in whole and "cut" not in whole


def test_chat_with_a_model_that_cannot_is_noted(run: Run) -> None:
    note = "This model has not been taught to chat"
    assert run("generate", "--chat", "Once", *GREEDY).stderr.count(note) == 1
    assert note not in run("generate", "Once", *GREEDY).stderr


def test_missing_file_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    result = run("generate", "-f", str(tmp_path / "none.txt"))
    assert result.exit_code == 2
    assert "none.txt" in result.stderr


def test_stdin_that_is_not_utf8_is_a_usage_error(run: Run) -> None:
    result = run("generate", "-", input=b"caf\xe9")
    assert result.exit_code == 2
    assert "stdin is not UTF-8 at byte 3" in result.stderr


@pytest.mark.parametrize("words", [("generate", "-f", "/dev/zero"), ("eval", "--text", "/dev/zero")])
def test_a_text_without_end_is_a_usage_error(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "Error: /dev/zero is larger than 64 MiB; give less of it"


@pytest.mark.parametrize(("command", "origin"), [("generate", "stdin"), ("chat", "line 1 of stdin")])
def test_stdin_without_end_is_a_usage_error(run_process: RunProcess, command: str, origin: str) -> None:
    with open("/dev/zero", "rb") as endless:
        done = run_process(command, "-q", stdin=endless)
    assert done.returncode == 2
    assert f"Error: {origin} is larger than 64 MiB; give less of it" in done.stderr


def test_same_seed_same_text(run: Run) -> None:
    arguments = ("generate", "Once upon a time", "--temperature", "1", "--max-tokens", "30", "--seed")
    first, second, other = (run(*arguments, seed).stdout for seed in ("7", "7", "8"))
    assert first == second
    assert first != other


def test_stop_text_ends_the_answer(run: Run) -> None:
    whole = run("generate", "Once upon a time", *GREEDY).stdout.rstrip("\n")
    word = whole.split()[3]
    found = shown(run("generate", "Once upon a time", "--stop", word, "--stop", "xyzzy", "--json", *GREEDY))
    assert found["text"] == whole[: whole.index(word)]
    assert found["finish_reason"] == "stop"


def test_options_from_the_environment(run: Run) -> None:
    environment = {"DEEPZIG_GENERATE_MAX_TOKENS": "3", "DEEPZIG_MODEL": "stories"}
    result = run("generate", "Once upon a time", "--json", env=environment)
    assert len(shown(result)["token_ids"]) == 3
    assert "bundled" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "1.5"),
        ("--max-tokens", "-1"),
        ("--max-tokens", "many"),
        ("--precision", "sloppy"),
        ("--threads", "0"),
        ("--threads", "5000000000"),
    ],
)
def test_bad_values_are_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("generate", "Once", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and arguments[0] in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "llama"}', '{"model_type": "deepseek_v3"}'])
def test_folder_without_a_model_exits_with_3(run: Run, tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    result = run("generate", "Once", "-m", str(tmp_path))
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("is_terminal", "expected"), [(True, "a\ufffd[31m\ufffdb\nc\n"), (False, "a\x1b[31m\x07b\nc\n")]
)
def test_a_model_cannot_command_the_terminal_but_pipes_get_every_character(
    is_terminal: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = TerminalStream() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with deepzig.load("stories") as llm:
        script(monkeypatch, llm, tokens_of(llm, "a\x1b[31m\x07b\nc"))
        print_stream(llm, "Once", deepzig.SamplingParams())
    assert stdout.getvalue() == expected


def test_streams_of_the_process_are_apart(run_process: RunProcess) -> None:
    done = run_process("generate", "Once upon a time", *GREEDY)
    assert done.returncode == 0
    assert "tok/s" in done.stderr and "tok/s" not in done.stdout
    assert len(done.stdout) > 12


def test_pipe_into_the_process(run_process: RunProcess) -> None:
    done = run_process("generate", "--json", *GREEDY, stdin=None, input="Once upon a time")
    assert done.returncode == 0
    assert json.loads(done.stdout)["prompt"] == "Once upon a time"


def test_argument_that_is_not_utf8_is_a_usage_error() -> None:
    command = [sys.executable.encode(), b"-m", b"deepzig", b"generate", b"caf\xe9"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 2
    assert b"PROMPT is not UTF-8" in done.stderr


def test_interrupted_answer_exits_with_130() -> None:
    endless = ("--ignore-eos", "--context-shift", "--max-tokens", "1000000")
    command = [sys.executable, "-m", "deepzig", "generate", "Once upon a time", *endless]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in rest


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_an_answer_ended_from_outside_keeps_the_prompt_cache(tmp_path: Path, number: signal.Signals) -> None:
    endless = ("--ignore-eos", "--context-shift", "--max-tokens", "1000000", "--prompt-cache", str(tmp_path))
    command = [sys.executable, "-m", "deepzig", "generate", "Once upon a time", *endless]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert b"Traceback" not in rest and list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["1M", "0.5g", "1 GiB"])
def test_cache_size_has_units(run: Run, size: str) -> None:
    assert run("generate", "Once", "--cache-bytes", size, *GREEDY).exit_code == 0


@pytest.mark.parametrize(
    ("size", "nbytes"), [("2kB", 2000), ("2 K", 2000), ("2KiB", 2048), ("0.002mib", 2097), ("1999", 1999)]
)
def test_units_are_decimal_unless_they_say_binary(run: Run, size: str, nbytes: int) -> None:
    result = run("generate", "Once", "--cache-bytes", size, *GREEDY)
    assert result.exit_code == 2 and f"cache_bytes {nbytes} is below" in result.stderr


@pytest.mark.parametrize("size", ["much", "0", "4iB", "1e3", "4GG"])
def test_a_cache_size_without_meaning_is_refused(run: Run, size: str) -> None:
    error = run("generate", "Once", "--cache-bytes", size, *GREEDY).stderr
    assert "no size such as 512MB or 4GiB" in " ".join(error.split())
