"""The command line as a whole: help without heavy imports, exit codes, one line for each error."""

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner

from deepzig import errors
from deepzig.cli import COMMANDS, LazyGroup, main

RunProcess = Callable[..., subprocess.CompletedProcess[str]]


def imported_by(commands: list[list[str]], *names: str) -> dict[str, list[str]]:
    """Which of these modules have been imported when the commands, in one process, have ended one after the other."""
    code = (
        "import json, sys; from deepzig.cli import main\n"
        "found = {}\n"
        f"for arguments in {commands!r}:\n"
        "    main(arguments, 'deepzig', standalone_mode=False)\n"
        f"    found[' '.join(arguments)] = [name for name in {names!r} if name in sys.modules]\n"
        "print('\\n' + json.dumps(found))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "numba", "tokenizers", "jinja2", "rich", "starlette", "huggingface_hub", "tomllib", "asyncio",
             "prompt_toolkit")  # fmt: skip
    found = imported_by([["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], *heavy)
    assert len(found) == 2 + len(COMMANDS) and not any(found.values()), found


def test_a_story_begins_without_what_it_does_not_need() -> None:
    heavy = ("numba", "jinja2", "rich", "starlette", "huggingface_hub", "llguidance", "asyncio", "sentencepiece")
    found = imported_by([["generate", "-m", "stories", "Once", "--max-tokens", "2"]], "numpy", *heavy)
    assert list(found.values()) == [["numpy"]]


def test_help_lists_the_commands(run: Callable[..., click.testing.Result]) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout and summary in result.stdout for name, summary in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_summary_is_the_help_of_the_command(name: str) -> None:
    command = getattr(importlib.import_module(f"deepzig.cli.{name}"), name)
    assert command.help.splitlines()[0] == COMMANDS[name]
    assert command.callback.__module__ == f"deepzig.cli.{name}"


def test_unknown_command_is_a_usage_error(run: Callable[..., click.testing.Result]) -> None:
    result = run("generat")
    assert result.exit_code == 2
    assert "generat" in result.stderr
    assert result.stdout == ""


def all_error_classes(base: type[errors.DeepzigError] = errors.DeepzigError) -> list[type[errors.DeepzigError]]:
    return [base] + [found for child in base.__subclasses__() for found in all_error_classes(child)]


def group_with(failure: BaseException) -> click.Group:
    """The real group with one command that fails."""

    @click.command()
    def fails() -> None:
        click.echo("answer")
        raise failure

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return fails

    return Group(name="deepzig", callback=main.callback)


@pytest.mark.parametrize("kind", all_error_classes())
def test_each_error_is_one_line_and_has_its_exit_code(kind: type[errors.DeepzigError]) -> None:
    result = CliRunner().invoke(group_with(kind("what, why, what to do")), ["fails"])
    assert result.exit_code == kind.exit_code
    assert result.stderr == "Error: what, why, what to do\n"
    assert result.stdout == "answer\n"


def test_exhausted_memory_exits_with_4() -> None:
    result = CliRunner().invoke(group_with(MemoryError()), ["fails"])
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: not enough memory")
    assert result.stderr.count("\n") == 1


def test_interrupt_exits_with_130() -> None:
    result = CliRunner().invoke(group_with(KeyboardInterrupt()), ["fails"])
    assert result.exit_code == 130
    assert result.stderr == "\n"


def test_interrupt_while_a_class_is_made_exits_with_130() -> None:
    wrapped = RuntimeError("Error calling __set_name__ on 'cached_property' instance")
    wrapped.__cause__ = KeyboardInterrupt()
    result = CliRunner().invoke(group_with(wrapped), ["fails"])
    assert (result.exit_code, result.stderr) == (130, "\n")


@pytest.mark.parametrize("imported", ["click", "deepzig.cli.help"])
def test_interrupt_before_the_command_line_is_there_is_quiet(imported: str) -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {imported!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting)\n"
        "runpy.run_module('deepzig', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    result = CliRunner().invoke(group_with(ZeroDivisionError("bug")), ["fails"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_warnings_are_one_line_on_stderr(run_process: RunProcess) -> None:
    code = (
        "import warnings, click; from deepzig.cli import LazyGroup\n"
        "class Group(LazyGroup):\n"
        "    def get_command(self, ctx, name):\n"
        "        return click.Command(name, callback=lambda: warnings.warn('slow', RuntimeWarning, stacklevel=1))\n"
        "Group(name='deepzig').main(['warns'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "Warning: slow\n"


def test_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-m", "deepzig", "kernels", "--json"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.stderr is not None
    assert "Traceback" not in writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(timeout=100) != 0


def test_terminal_without_unicode_gets_question_marks(run_process: RunProcess) -> None:
    done = run_process("info", "-m", "nowhere-\N{SNOWMAN}", env={"PYTHONIOENCODING": "latin-1", "PATH": ""})
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "nowhere-" in done.stderr
