"""The command line. Each command is a module of this package, imported when it runs, with a function of its name.

Called by `__main__`; calls the commands. The one place that turns
exceptions into a line on stderr and an exit code. Knows nothing of models and arrays: `deepzig --help` imports click
and little beside it, and must stay that fast.
"""

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from deepzig.checkpoint.safe_files import NO_ROOM
from deepzig.cli.help import Helpful
from deepzig.cli.messages import on_stderr
from deepzig.cli.naming import PROGRAM
from deepzig.cli.terminal_text import harmless
from deepzig.errors import DeepzigError, ResourceError

# The first line of each command's help, here too so that listing the commands imports none of them.
COMMANDS = {
    "generate": "Continue a prompt, or answer it.",
    "chat": "Talk with a model.",
    "serve": "Serve a model over HTTP, as OpenAI's API does, with a web page.",
    "quantize": "Convert a checkpoint to another format.",
    "verify": "Check a checkpoint, byte by byte.",
    "eval": "Measure how well a model predicts a text.",
    "bench": "Measure how fast a model, a server or a change is.",
    "info": "Show what a model is and what it needs.",
    "kernels": "Show which kernels run on this machine.",
    "completion": "Print the script that lets a shell complete commands.",
}
INTERRUPTED = 130


class LazyGroup(Helpful, click.Group):
    """A click group that imports a command's module when the command runs."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        _open_closed_streams()
        with _one_line_per_failure():
            return super().make_context(info_name, args, parent, color=_wants_colour(), **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_per_failure(), on_stderr():
            return super().invoke(ctx)


@contextmanager
def _one_line_per_failure() -> Iterator[None]:
    """Print an error as one line and exit with its class's code. A closed pipe is left to click, which is quiet."""
    try:
        yield
    except DeepzigError as error:
        _exit(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        if error.filename is None:
            _discard_stdout()
        written = error.filename or "what was to be printed"
        _exit(f"cannot write {written} ({error.strerror}); make room", ResourceError.exit_code)
    except MemoryError:
        _exit("not enough memory; take a smaller model or stop other programs", ResourceError.exit_code)
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else PROGRAM.lower()
        _exit(error.format_message(), error.exit_code, hint=f"Try '{path} --help' for help.")
    except click.ClickException as error:
        _exit(error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # while a question was asked
            _interrupted()
        raise
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while a class was made: Python 3.11 wraps what comes then
            _interrupted()
        raise


def _exit(message: str, exit_code: int, hint: str = "") -> NoReturn:
    click.echo(harmless(f"Error: {' '.join(message.split())}", sys.stderr), err=True)
    if hint:
        click.echo(hint, err=True)
    raise click.exceptions.Exit(exit_code)


def _interrupted() -> NoReturn:
    click.echo(err=True)  # the shell's prompt starts on a line of its own
    raise click.exceptions.Exit(INTERRUPTED) from None


def _open_closed_streams() -> None:
    """Direct streams that the caller closed, as `>&-` does, to nowhere: else a model's file could become stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8", closefd=False))  # as Python's own


def _discard_stdout() -> None:
    """Drop what could not be written; else Python would try again at exit and make the exit code 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _wants_colour() -> bool | None:
    """What NO_COLOR and FORCE_COLOR say about all styles; None: colours on terminals."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def _write_any_character() -> None:
    """Let a terminal that is not UTF-8 show `?` for characters that it lacks, instead of failing amid an answer."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


PLACEHOLDERS = {name: click.Command(name) for name in COMMANDS}  # click suggests names of them; none is run


@click.group(cls=LazyGroup, commands=PLACEHOLDERS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deepzig", message="%(prog)s %(version)s")
def main() -> None:
    """Run the DeepSeek-V3 family of language models on this computer's CPU.

    Answers go to stdout, everything else to stderr. Bars are drawn on terminals only; colours too, unless NO_COLOR or
    FORCE_COLOR is set. `deepzig COMMAND --help` tells more about a command.

    Exit codes: 0 ok, 1 failure while running, 2 wrong usage, 3 model or file invalid, 4 not enough memory or disk,
    5 network, 130 interrupted, 129 terminal closed, 143 ended by SIGTERM.

    \b
        deepzig generate "Once upon a time"
        deepzig generate -m deepseek-ai/DeepSeek-V2-Lite-Chat --chat "Why is the sky blue?"
        deepzig info -m deepseek-ai/DeepSeek-V3
        deepzig serve -m ./DeepSeek-V2-Lite-Chat
    """
    _write_any_character()


def quantize_model() -> None:
    """The console script `quantize-model`: `deepzig quantize` under a name that people look for."""
    main(args=["quantize", *sys.argv[1:]], prog_name="deepzig")
