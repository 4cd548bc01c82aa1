"""What holds for every command: class, help, -q and -v, environment variables."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result

from deepzig.cli import LazyGroup, main
from deepzig.cli.command import Command, command
from deepzig.cli.help import Formatter
from deepzig.cli.messages import note, warn
from deepzig.cli.naming import long_name, path_of, variables_of
from tests.cli.commands import all_contexts, all_options

Run = Callable[..., Result]
CONTEXTS = list(all_contexts())
OPTIONS = list(all_options())


def named(value: Any) -> str:
    return " ".join(path_of(value)) if isinstance(value, click.Context) else f"--{long_name(value)}"


@pytest.mark.parametrize("context", CONTEXTS, ids=named)
def test_every_command_is_made_by_our_decorator(context: click.Context) -> None:
    assert isinstance(context.command, Command), "decorate it with command() or group() of deepzig.cli.command"


def sample(option: click.Option, file: Path) -> tuple[str, Any]:
    """Text of an environment variable, and what it means."""
    if option.is_flag:
        return "yes", True
    if option.multiple:
        return "'two long words' long-word", ("two long words", "long-word")
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1]), option.type.choices[-1]
    if isinstance(option.type, click.types.IntParamType):
        return "3", 3
    if isinstance(option.type, click.types.FloatParamType):
        return "0.5", 0.5
    if isinstance(option.type, click.Path):
        path = file if option.type.file_okay else file.parent
        return str(path), path
    return "word", "word"


@pytest.mark.parametrize(("context", "option"), OPTIONS, ids=named)
def test_every_option_is_read_from_its_variables(
    context: click.Context, option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("text", encoding="utf-8")
    text, meant = sample(option, file)
    variables = variables_of(option, path_of(context))
    assert variables[0] == f"DEEPZIG_{named(context)}_{long_name(option)}".upper().replace("-", "_").replace(" ", "_")
    for variable in variables:
        with monkeypatch.context() as patch:
            patch.setenv(variable, text)
            raw, source = option.consume_value(context, {})
        assert source is ParameterSource.ENVIRONMENT
        assert option.type_cast_value(context, raw) == meant


def test_no_two_options_share_a_variable_by_accident() -> None:
    own = [variables_of(option, path_of(context))[0] for context, option in OPTIONS]
    assert sorted(own) == sorted(set(own))
    shared = {name for context, option in OPTIONS for name in variables_of(option, path_of(context))[1:]}
    assert shared.isdisjoint(own)


@command()
@click.option("--size", type=click.IntRange(min=1), default=8, show_default=True, help="How much.")
@click.option("--key", "keys", multiple=True)
def work(size: int, keys: tuple[str, ...]) -> None:
    """Do something.

    \b
        deepzig work --size 5 --key "two words" > "a folder with a long name"
        deepzig work
    """
    click.echo(f"{size} {keys}")
    note("note")
    warn("careful")
    warnings.simplefilter("always")
    warnings.warn("slow", RuntimeWarning, stacklevel=1)
    logging.getLogger("deepzig.engine").info("loaded")
    logging.getLogger("other").info("chatter")
    logging.getLogger("deepzig.engine").error("broken")


class OnlyWork(LazyGroup):
    """The real group, but for its commands."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return work


def work_with(*arguments: str, **environment: str) -> Result:
    group = OnlyWork(name="deepzig", callback=main.callback, context_settings=main.context_settings)
    return CliRunner().invoke(group, ["work", *arguments], env=environment, prog_name="deepzig")


def test_the_command_line_goes_before_a_variable() -> None:
    assert work_with("--size", "2", DEEPZIG_WORK_SIZE="3").stdout == "2 ()\n"
    assert work_with(DEEPZIG_WORK_SIZE="3").stdout == "3 ()\n"
    assert work_with(DEEPZIG_WORK_SIZE="").stdout == "8 ()\n"


def test_the_own_variable_goes_before_the_shared_one(run: Run) -> None:
    result = run("generate", "Hi", env={"DEEPZIG_GENERATE_MODEL": "here", "DEEPZIG_MODEL": "there"})
    assert "'here' is no folder" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ([], {"DEEPZIG_WORK_SIZE": "x"}, "DEEPZIG_WORK_SIZE: 'x' is not a valid integer range."),
        ([], {"DEEPZIG_WORK_SIZE": "0"}, "DEEPZIG_WORK_SIZE: 0 is not in the range x>=1."),
        ([], {"DEEPZIG_QUIET": "perhaps"}, "DEEPZIG_QUIET: 'perhaps' is not a valid boolean."),
        (["--size", "0"], {"DEEPZIG_WORK_SIZE": "3"}, "Invalid value for '--size': 0 is not in the range x>=1."),
        (["--siz", "0"], {}, "No such option '--siz'."),
        (["more"], {}, "Got unexpected extra argument (more)"),
        (["-q", "-v"], {}, "--quiet and --verbose exclude each other; leave one out"),
        ([], {"DEEPZIG_QUIET": "1", "DEEPZIG_VERBOSE": "1"}, "--quiet and --verbose exclude each other; leave one out"),
    ],
)
def test_wrong_usage_is_a_line_and_a_hint(arguments: list[str], environment: dict[str, str], complaint: str) -> None:
    result = work_with(*arguments, **environment)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"Error: {complaint.removesuffix('.')}")
    assert hint == "Try 'deepzig work --help' for help."


def test_an_open_quote_is_told_without_the_value() -> None:
    result = work_with(DEEPZIG_WORK_KEY="'secret")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: DEEPZIG_WORK_KEY: No closing quotation") and "secret" not in result.stderr


NORMAL = ["note", "Warning: careful", "Warning: slow", "Error: broken"]
VERBOSE = [*NORMAL[:-1], "loaded", NORMAL[-1]]


@pytest.mark.parametrize(
    ("arguments", "environment", "lines"),
    [
        ([], {}, NORMAL),
        (["-q"], {}, NORMAL[-1:]),
        ([], {"DEEPZIG_QUIET": "1"}, NORMAL[-1:]),
        (["--verbose"], {}, VERBOSE),
        (["-v"], {"DEEPZIG_QUIET": "1"}, VERBOSE),
        (["-q"], {"DEEPZIG_VERBOSE": "1"}, NORMAL[-1:]),
        ([], {"DEEPZIG_QUIET": "0"}, NORMAL),
    ],
)
def test_quiet_and_verbose_choose_what_is_said(
    arguments: list[str], environment: dict[str, str], lines: list[str]
) -> None:
    result = work_with(*arguments, **environment)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == lines
    assert result.stdout == "8 ()\n"


def test_levels_are_as_before_when_the_command_has_ended() -> None:
    loggers = [logging.getLogger(), logging.getLogger("deepzig")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    work_with("-q")
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


@pytest.mark.parametrize("arguments", [("generate", "Once", "--max-tokens", "2"), ("info",), ("kernels",)])
def test_quiet_leaves_stderr_empty_and_the_answer_as_it_is(run: Run, arguments: tuple[str, ...]) -> None:
    quiet, normal = run(*arguments, "--quiet"), run(*arguments)
    assert quiet.exit_code == normal.exit_code == 0
    assert quiet.stderr == ""
    assert arguments == ("kernels",) or "Using the bundled model" in normal.stderr
    # info measures, and its columns are as wide as what it measured
    without_figures = [re.sub(r"\d[\d.]*", "", text).split() for text in (quiet.stdout, normal.stdout)]
    assert quiet.stdout and ("generate" in arguments or without_figures[0] == without_figures[1])


def test_verbose_says_what_is_loaded(run: Run) -> None:
    arguments = ("generate", "-m", "stories", "Once", "--max-tokens", "2", "--threads", "1", "--cache-bytes", "4M")
    said = run(*arguments, "-v").stderr
    assert re.search(r"^kernels: \d+ \w+", said, re.MULTILINE)
    assert re.search(r"bundled/stories: deepseek_v3, \d+ layers$", said, re.MULTILINE)
    assert re.search(r"^loaded in [\d.]+ s: threads 1, cache of \d+ tokens$", said, re.MULTILINE)
    assert "kernels:" not in run(*arguments).stderr


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({}, "red\n"),
        ({"FORCE_COLOR": "1"}, "\x1b[31mred\x1b[0m\n"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "red\n"),
        ({"FORCE_COLOR": "", "NO_COLOR": ""}, "red\n"),
    ],
)
def test_colours_are_as_the_environment_says(environment: dict[str, str], shown: str) -> None:
    @command()
    def paints() -> None:
        click.echo(click.style("red", fg="red"))

    class OnlyPaints(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return paints

    group = OnlyPaints(name="deepzig", callback=main.callback)
    neither = {"NO_COLOR": None, "FORCE_COLOR": None}
    assert CliRunner().invoke(group, ["paints"], env=neither | environment).stdout == shown


def test_no_colour_on_a_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main.make_context("deepzig", ["kernels"]).color is False
    monkeypatch.delenv("NO_COLOR")
    assert main.make_context("deepzig", ["kernels"]).color is None


def test_quiet_still_shows_errors(run: Run) -> None:
    result = run("info", "-q", "-m", "nowhere")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: 'nowhere' is no folder")


@pytest.mark.parametrize("context", CONTEXTS, ids=named)
@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_terminal_and_has_examples(context: click.Context, columns: int) -> None:
    formatter = Formatter(width=columns - 2)
    context.command.format_help(context, formatter)
    lines = formatter.getvalue().splitlines()
    too_long = [line for line in lines if len(line) > columns]
    assert all(len(line.split()) <= 3 for line in too_long), "more than an option and its value"
    assert columns == 40 or not too_long
    assert lines[0].startswith(f"Usage: {context.command_path} [OPTIONS]") and lines[0] == lines[0].rstrip()
    assert "Examples:" in lines and any("deepzig " in line for line in lines[lines.index("Examples:") :])


def test_help_is_shown_however_narrow_the_terminal(run: Run) -> None:
    assert "Usage:" in run("kernels", "--help", env={"COLUMNS": "1"}).stdout


def test_options_stand_under_headings(run: Run) -> None:
    headings = re.findall(r"^(\w[\w ]*):$", run("generate", "--help").stdout, re.MULTILINE)
    assert headings == ["Examples", "Options", "Model", "Sampling", "Beam search", "Computing", "Messages"]


def test_examples_are_broken_so_that_a_shell_reads_them() -> None:
    formatter = Formatter(width=38)
    work.format_help(click.Context(work, info_name="work"), formatter)
    shown = formatter.getvalue().partition("Examples:\n")[2].partition("\n\n")[0]
    assert shown == (
        "  deepzig work --size 5 \\\n"
        '      --key "two words" > \\\n'
        '      "a folder with a long name"\n'
        "  deepzig work"
    )
