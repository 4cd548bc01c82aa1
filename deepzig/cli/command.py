"""What commands add to click's: -q and -v, environment variables, the config file, help in sections.

Called by the modules of the commands, which are decorated with `@command()` or `@group()`; calls `messages` and
`config_file`. Knows no command.
"""

import functools
from typing import Any

import click
from click.core import ParameterSource

from deepzig.cli import config_file, messages
from deepzig.cli.help import Helpful
from deepzig.cli.naming import EVERYWHERE, PROGRAM, Option, Words, path_of, settable, variable_in_use, variables_of

VERBOSITY = f"{__name__}.verbosity"


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
        for option in settable(self):  # only now: the names of variables contain the command's path, which `ctx` knows
            option.envvar = variables_of(option, path_of(ctx))
        if not ctx.resilient_parsing:
            ctx.default_map = config_file.Defaults(ctx)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise _from_elsewhere(error, ctx) or error from error

    def get_help(self, ctx: click.Context) -> str:
        ctx.default_map = None  # the help shows the defaults of deepzig, whatever a config file says
        return super().get_help(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = "_".join((PROGRAM, *path_of(ctx), "...")).upper().replace("-", "_")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Environment variables ({own}, or {PROGRAM}_... for what several commands have) and "
                                 "a config file set options, too; `deepzig info --config` shows them.")  # fmt: skip


class Group(Command, click.Group):
    """A command with subcommands."""

    command_class = Command


command = functools.partial(click.command, cls=Command)
group = functools.partial(click.group, cls=Group)


def _from_elsewhere(error: click.BadParameter, context: click.Context) -> click.UsageError | None:
    """The error, with the name of the variable or of the file's key that holds the value, if one does."""
    option = error.param
    if not isinstance(option, click.Option) or option.name is None:
        return None
    source = context.get_parameter_source(option.name)
    variable = variable_in_use(option)
    if variable and source in (ParameterSource.ENVIRONMENT, None):  # None: it cannot even be split into words
        return click.UsageError(f"{variable}: {error.message}", context)
    if source is ParameterSource.DEFAULT_MAP and (file := config_file.of(context)):
        return click.UsageError(f"{file.path}: {file.key_of(option, path_of(context))}: {error.message}", context)
    return None


def _set_verbosity(context: click.Context, option: click.Parameter, is_on: bool) -> None:
    """Set -q or -v; the one given nearest to the command counts: the command line beats a variable."""
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
