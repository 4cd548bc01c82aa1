"""Exit codes of the commands by cause: 1 while running, 2 usage, 3 model or file, 4 memory or disk, 5 network, 130."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from deepzig.cli import LazyGroup, main
from deepzig.cli.naming import path_of
from deepzig.errors import NetworkError
from tests.cli.commands import all_contexts
from tests.cli.terminal import TerminalStream

Run = Callable[..., Result]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]
CONTEXTS = list(all_contexts())

# With {model} in place of a model.
WITH_MODEL = {
    "generate": ["generate", "-m", "{model}", "Once"],
    "chat": ["chat", "-m", "{model}"],
    "serve": ["serve", "-m", "{model}", "--port", "0"],
    "info": ["info", "-m", "{model}"],
    "eval": ["eval", "-m", "{model}", "--text", __file__],
    "eval's reference": ["eval", "--reference", "{model}", "--text", __file__],
    "quantize": ["quantize", "{model}", "nowhere", "--format", "int8"],
}
NEEDS_KERNELS = {name: words for name, words in WITH_MODEL.items() if name != "quantize"} | {"kernels": ["kernels"]}


def with_model(words: list[str], model: str) -> list[str]:
    return [word.format(model=model) for word in words]


def is_one_line(stderr: str) -> bool:
    return stderr.startswith("Error: ") and stderr.count("\n") == 1


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: " ".join(path_of(context)))
def test_2_where_an_option_is_unknown(run: Run, context: click.Context) -> None:
    path = path_of(context)
    result = run(*path, "--no-such-option")
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: No such option '--no-such-option'")
    assert hint.startswith("Try '") and hint.endswith(f"{' '.join(path)} --help' for help.")


def test_2_where_a_command_is_unknown_and_the_nearest_is_told(run: Run) -> None:
    result = run("genrate", "Hi")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "Error: No such command 'genrate'. Did you mean 'generate'?"


@pytest.mark.parametrize("words", [*WITH_MODEL.values(), ["verify", "{model}"]], ids=[*WITH_MODEL, "verify"])
def test_2_where_the_name_of_the_model_is_empty(run: Run, words: list[str]) -> None:
    result = run(*with_model(words, ""), "-q")
    assert result.exit_code == 2, result.stderr
    assert "the model's name is empty" in result.stderr and is_one_line(result.stderr)


@pytest.mark.parametrize("words", WITH_MODEL.values(), ids=WITH_MODEL)
def test_3_where_there_is_no_model(run: Run, words: list[str]) -> None:
    result = run(*with_model(words, "./nowhere"), "-q")
    assert result.exit_code == 3, result.stderr
    assert "'./nowhere' is no folder and no name of a model" in result.stderr and is_one_line(result.stderr)


@pytest.mark.parametrize("words", WITH_MODEL.values(), ids=WITH_MODEL)
def test_3_where_a_model_is_of_another_family(run: Run, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    result = run(*with_model(words, str(tmp_path)), "-q")
    assert result.exit_code == 3, result.stderr
    assert "llama" in result.stderr and is_one_line(result.stderr)


def test_3_where_a_folder_is_not_sound(run: Run, tmp_path: Path) -> None:
    result = run("verify", str(tmp_path), "-q")
    assert result.exit_code == 3
    assert is_one_line(result.stderr)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["info", "--config"], ["generate", "-q", "Once", "--max-tokens", "2"]])
def test_4_where_the_answer_has_no_place(words: list[str], unbuffered: str) -> None:
    """stdout is a file on a full disk; in Python's buffer something may be left over that it would write at its end."""
    command = [sys.executable, "-m", "deepzig", *words]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr and is_one_line(done.stderr)


@pytest.mark.parametrize("words", WITH_MODEL.values(), ids=WITH_MODEL)
def test_5_where_the_hub_cannot_be_reached(
    run: Run, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run(*with_model(words, "org/tiny"), "-q", env={"DEEPZIG_OFFLINE": "1"})
    assert result.exit_code == 5, result.stderr
    assert "org/tiny is not on this machine" in result.stderr and is_one_line(result.stderr)


@pytest.mark.parametrize("words", NEEDS_KERNELS.values(), ids=NEEDS_KERNELS)
def test_1_where_a_kernel_cannot_run_as_asked(run_process: RunProcess, words: list[str]) -> None:
    done = run_process(*with_model(words, "stories"), "-q", env=os.environ | {"DEEPZIG_ISA": "sse9"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "DEEPZIG_ISA='sse9' is unknown" in done.stderr and is_one_line(done.stderr)


def test_2_where_a_port_is_taken(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "-q", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "take another --port" in result.stderr and is_one_line(result.stderr)


@pytest.mark.parametrize(
    ("failure", "exit_code", "stderr"), [(KeyboardInterrupt(), 130, "\n"), (EOFError(), 1, "Aborted!\n")]
)
def test_130_where_a_question_is_interrupted(
    failure: BaseException, exit_code: int, stderr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> str:
        raise failure

    @click.command()
    def asks() -> None:
        monkeypatch.setattr("click.termui.visible_prompt_func", interrupt)
        click.confirm("Go on?", err=True)

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return asks

    result = CliRunner().invoke(Group(name="deepzig", callback=main.callback), ["asks"])
    assert result.exit_code == exit_code
    assert result.stderr.removeprefix("Go on? [y/N]: ").lstrip("\n") == stderr.lstrip("\n")


def test_an_error_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold what a server said."""

    @click.command()
    def fails() -> None:
        raise NetworkError("HTTP 500: \x1b]0;title\x07")

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return fails

    terminal = TerminalStream()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert Group(name="deepzig", callback=main.callback).main(["fails"], standalone_mode=False) == 5
    assert terminal.getvalue() == "Error: HTTP 500: \ufffd]0;title\ufffd\n"




def test_messages_that_cannot_be_written_stop_nothing(run_process: RunProcess) -> None:
    with open("/dev/full", "w") as full:
        done = run_process("generate", "Once", "--max-tokens", "3", "--temperature", "0", capture_output=False,
                           stdout=subprocess.PIPE, stderr=full)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, " upon a time\n")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_closed_streams_are_nowhere(closed: str, tmp_path: Path) -> None:
    words = f"-m deepzig quantize stories {tmp_path / 'out'} --format int8"
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} {words} {closed}"], timeout=100)
    assert done.returncode == 0 and (tmp_path / "out/config.json").exists()
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -m deepzig generate -q Once {closed}"], timeout=100)
    assert done.returncode == 0
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -m deepzig --no-such-option {closed}"], timeout=100)
    assert done.returncode == 2


@pytest.mark.parametrize(
    "words", [["generate", "-m", "stories", "Once", "--ignore-eos", "--max-tokens", "2000"], ["info", "--config"]]
)
def test_a_reader_that_goes_away_is_left_in_peace(words: list[str]) -> None:
    """As `| head -1` does."""
    command = [sys.executable, "-m", "deepzig", *words]
    writer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    assert len(writer.stdout.read(3)) == 3
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(timeout=100) in (0, 1)  # 0 if all was written before
