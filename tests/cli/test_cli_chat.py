"""`deepzig chat` with stdin from a file or pipe: what goes where, exit codes, options."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import deepzig
from tests.talkers import TEMPLATES, make_talker

Run = Callable[..., Result]
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_talker(tmp_path_factory.mktemp("thinker"), TEMPLATES["V3.1"]))


def test_answers_on_stdout_are_those_of_the_api(run: Run) -> None:
    result = run("chat", *GREEDY, input="Once upon a time\n\n")
    params = deepzig.SamplingParams(temperature=0, max_tokens=12)
    with deepzig.load("stories") as llm:
        first = llm.generate("Once upon a time", params)
        second = llm.generate(f"Once upon a time{first.text}", params)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{first.text}\n{second.text}\n"


def test_everything_else_is_on_stderr(run: Run) -> None:
    result = run("chat", *GREEDY, input="Once upon a time\r\n/stats\n/exit\nTom\n")
    model, story, statistics, *stats = result.stderr.splitlines()
    assert "'stories'" in model and "write one story" in story
    assert statistics.startswith("prompt 5 tokens, ") and statistics.count("tok/s") == 2
    assert statistics.endswith("; cut at --max-tokens 12")
    assert [line.split()[0] for line in stats] == ["prompt", "answer", "context", "session"]
    assert result.stdout.count("\n") == 1, "nothing is read after /exit"


def test_statistics_tell_what_was_not_read_again(run: Run) -> None:
    lines = run("chat", *GREEDY, input="Once upon a time\nThen\n").stderr.splitlines()
    assert "cached" not in lines[-2] and ", 16 cached, " in lines[-1]


def test_lines_that_go_on(run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    result = run("chat", *GREEDY, input=f"one\\\ntwo\\\n\n/save {saved}\nthree\\")
    assert result.exit_code == 0
    assert json.loads(saved.read_text(encoding="utf-8"))["messages"][0]["content"] == "one\ntwo\n"
    assert result.stdout.count("\n") >= 2, "the last line goes on to the end"


def test_an_empty_line_is_no_message_in_a_chat(run: Run, thinker: str) -> None:
    result = run("chat", "-m", thinker, *GREEDY, input="\n \nHello\n")
    assert result.stderr.count("first token after") == 1 and result.stdout.strip()
    assert "story" not in result.stderr


def test_errors_are_lines_and_the_first_one_is_the_exit_code(run: Run) -> None:
    result = run("chat", *GREEDY, input=b"/foo\ncaf\xe9\n/save /nowhere/talk.json\nOnce upon a time\n")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert [error.split()[1] for error in errors] == ["/foo", "line", "cannot"]
    assert "line 2 of stdin is not UTF-8 at byte 3" in errors[1]
    assert result.stdout.startswith(", there was"), "the session goes on"


def test_a_full_context_tells_what_to_do(run: Run) -> None:
    result = run("chat", "--temperature", "0", "--ignore-eos", input="word " * 1000 + "\n" + "word " * 50 + "\n")
    assert "The context of 1024 tokens is full: /undo or /clear makes room, --context-shift goes on" in result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "there is room for 1024; /undo or /clear makes room" in error
    assert result.exit_code == 2


def test_a_context_that_shifts_is_never_full(run: Run) -> None:
    options = (*GREEDY, "--ignore-eos", "--context-shift")
    result = run("chat", *options, input="word " * 1000 + "\n" + "word " * 50 + "\n")
    assert result.exit_code == 0 and "Error" not in result.stderr and "old tokens dropped" in result.stderr


def test_quiet_leaves_the_answers(run: Run) -> None:
    result = run("chat", "-q", *GREEDY, input="Once upon a time\n/set seed 3\n")
    assert result.stdout.startswith(", there was") and result.stderr == "seed  3\n"


def test_thoughts_go_to_stderr_or_nowhere(run: Run, thinker: str) -> None:
    shown = run("chat", "-m", thinker, "--think", *GREEDY, input="Hello\n")
    assert shown.stdout == "" and shown.stderr.startswith("<think>\n") and "\n</think>\n" in shown.stderr
    assert "Cut at --max-tokens 12" in shown.stderr and "No answer came" in shown.stderr
    hidden = run("chat", "-m", thinker, "--think", "--hide-reasoning", *GREEDY, input="Hello\n")
    assert hidden.stdout == "" and hidden.stderr.startswith("Cut at --max-tokens 12")
    without = run("chat", "-m", thinker, "--no-think", *GREEDY, input="Hello\n")
    assert without.stdout and "think" not in without.stderr


def test_a_conversation_goes_on_from_a_file(run: Run, thinker: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    arguments = ("chat", "-m", thinker, *GREEDY)
    assert run(*arguments, "--system", "Be short.", input=f"Hello\n/save {first}\n").exit_code == 0
    result = run(*arguments, "--load", str(first), "--system", "Be kind.", input=f"/save {second}\n")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"Loaded 3 messages from {first}.\n")
    system, *messages = json.loads(second.read_text(encoding="utf-8"))["messages"]
    assert system == {"role": "system", "content": "Be kind."}
    assert messages == json.loads(first.read_text(encoding="utf-8"))["messages"][1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "Be short."), "no system message"),
        (("--think",), "no switch for thinking"),
        (("--temperature", "-1"), "temperature -1.0"),
        (("--load", "none.json"), "none.json"),
        (("--load", __file__), "is no JSON"),
    ],
)
def test_what_cannot_be_is_told_at_once(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("chat", *arguments, input="Hello\n")
    assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


def test_an_interrupt_ends_a_chat_without_a_terminal() -> None:
    endless = ("--ignore-eos", "--context-shift", "--max-tokens", "1000000")
    command = [sys.executable, "-m", "deepzig", "chat", *endless]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"Once upon a time\n")
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in rest


def test_stdin_that_is_closed_is_an_empty_chat() -> None:
    command = f"exec {sys.executable} -m deepzig chat -q <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
