"""What each command has beyond click's: -q and -v, environment variables, a help in sections with examples.

Called by the modules of the commands, which are decorated with `@command()` or `@group()`, and by `options`, whose
options are of class `Option`; calls `messages`. Knows no command.
"""

import functools
import inspect
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from deepzig.cli import messages

PROGRAM = "DEEPZIG"
OWN, EVERYWHERE = "Options", "Messages"  # headings of the help
NARROW = 60  # columns: below, what an option does stands under it
MAX_WIDTH = 80
VERBOSITY = f"{__name__}.verbosity"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Option(click.Option):
    """An option with a heading in the help; a shared one also answers to DEEPZIG_<OPTION>, without a command's name."""

    def __init__(self, *args: Any, heading: str = OWN, shared: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading
        self.is_shared = shared


def shared_option(*names: str, heading: str, **attributes: Any) -> Decorator:
    """An option that several commands have."""
    return click.option(*names, cls=Option, shared=True, heading=heading, **attributes)


class Words(click.types.StringParamType):
    """Text of an option that may be repeated: an environment variable holds several as a shell's words."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        try:
            return shlex.split(rv)
        except ValueError as error:
            raise click.BadParameter(f"{error}; separate texts by spaces, quote those that hold some") from error


def long_name(parameter: click.Parameter) -> str:
    """As people write it, without dashes: max-tokens."""
    return max(parameter.opts, key=len).lstrip("-")


def path_of(context: click.Context) -> tuple[str, ...]:
    """The command's name behind `deepzig`, and its subcommand's."""
    if context.parent is None:
        return ()
    return (*path_of(context.parent), context.info_name or "")


def settable(command: click.Command) -> list[click.Option]:
    """The options that environment variables set, too: all but --help."""
    return [option for option in command.params if isinstance(option, click.Option)]


def variables_of(option: click.Option, path: tuple[str, ...]) -> list[str]:
    """Names of an option's environment variables, the command's own first."""
    name = long_name(option)
    owners: list[tuple[str, ...]] = [path]
    if isinstance(option, Option) and option.is_shared:
        owners.append(())
    return ["_".join((PROGRAM, *owner, name)).upper().replace("-", "_") for owner in owners]


class Formatter(click.HelpFormatter):
    """click's, for narrow terminals too."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        if width is None and click.formatting.FORCED_WIDTH is None:
            width = min(shutil.get_terminal_size().columns, max_width or MAX_WIDTH) - 2
        super().__init__(indent_increment, width, max_width)

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        if self.width < NARROW:
            col_max = 2 * self.indent_increment
        super().write_dl(rows, col_max, col_spacing)

    def write_example(self, line: str) -> None:
        """A command on as many lines as it needs, to be copied as they are."""
        indent = " " * self.current_indent
        room = self.width - len(indent) - 2
        rows = [""]
        for word in re.findall(r"""(?:(?:-\S+|<) +(?!-))?(?:"[^"]*"|'[^']*'|\S)+""", line):  # options with their values
            if rows[-1] and len(rows[-1]) + 1 + len(word) > room:
                rows.append("   ")
            rows[-1] += f" {word}" if rows[-1] else word
        self.write(" \\\n".join(indent + row for row in rows) + "\n")


class Context(click.Context):
    formatter_class = Formatter


class Helpful(click.Command):
    """A command whose docstring's \\b paragraphs are examples, and whose options stand under headings."""

    context_class = Context

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text, *blocks = inspect.cleandoc(self.help or "").split("\n\n\b\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)
        if blocks and isinstance(formatter, Formatter):
            with formatter.section("Examples"):
                for line in "\n".join(blocks).splitlines():
                    formatter.write_example(line)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {OWN: []}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)):
                default = EVERYWHERE if option is self.get_help_option(ctx) else OWN
                sections.setdefault(getattr(option, "heading", default), []).append(record)
        for heading in sorted(sections, key=lambda heading: heading == EVERYWHERE):
            if sections[heading]:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class Command(Helpful):
    """A command of deepzig."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params += [
            Option(["-q", "--quiet"], is_flag=True, help="Nothing on stderr but errors.", **_SILENTLY),
            Option(["-v", "--verbose"], is_flag=True, help="Say what is loaded and done, too.", **_SILENTLY),
        ]
        for parameter in self.params:
            if parameter.type is click.STRING and isinstance(parameter, click.Option) and parameter.multiple:
                parameter.type = Words()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option in settable(self):
            option.envvar = variables_of(option, path_of(ctx))
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise _from_elsewhere(error, ctx) or error from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = "_".join((PROGRAM, *path_of(ctx), "...")).upper().replace("-", "_")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Environment variables set options, too: {own}, or {PROGRAM}_... for those that "
                                 "several commands have.")  # fmt: skip


class Group(Command, click.Group):
    """A command with subcommands."""

    command_class = Command


command = functools.partial(click.command, cls=Command)
group = functools.partial(click.group, cls=Group)


def _from_elsewhere(error: click.BadParameter, context: click.Context) -> click.UsageError | None:
    """The error with the name of the environment variable that holds the value, if it is one."""
    option = error.param
    if not isinstance(option, click.Option) or option.name is None:
        return None
    if context.get_parameter_source(option.name) is not ParameterSource.ENVIRONMENT:
        return None
    variable = next(name for name in option.envvar or () if os.environ.get(name))
    return click.UsageError(f"{variable}: {error.message}", context)


def _set_verbosity(context: click.Context, option: click.Parameter, is_on: bool) -> None:
    """The one that is given nearest to the command counts: a word on the command line more than a variable."""
    if not is_on or context.resilient_parsing:
        return
    order = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
    source = context.get_parameter_source(str(option.name))
    rank = order.index(source) if source in order else len(order)
    chosen, its_rank = context.meta.get(VERBOSITY, (option.name, len(order) + 1))
    if rank == its_rank and option.name != chosen:
        raise click.UsageError("--quiet and --verbose exclude each other; leave one out", context)
    if rank < its_rank:
        context.meta[VERBOSITY] = (option.name, rank)
        messages.be_quiet() if option.name == "quiet" else messages.be_verbose()


_SILENTLY: dict[str, Any] = {
    "is_eager": True, "expose_value": False, "callback": _set_verbosity, "heading": EVERYWHERE, "shared": True,
}  # fmt: skip
