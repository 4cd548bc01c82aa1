"""An option: its heading in the help, and its names on the command line, in the environment and in the config file.

Called by the modules of the command line; calls click. Knows no command.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import click

PROGRAM = "DEEPZIG"
OWN, EVERYWHERE = "Options", "Messages"  # headings of the help

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


def in_order(*options: Decorator) -> Decorator:
    """All the options, in the help in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class Words(click.types.StringParamType):
    """Text of an option that may be repeated: an environment variable holds several values, as words of a shell."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        try:
            return shlex.split(rv)
        except ValueError as error:
            raise click.BadParameter(f"{error}; separate texts by spaces, quote those that hold some") from error


def long_name(parameter: click.Parameter) -> str:
    """The name as people write it, without dashes: max-tokens."""
    return max(parameter.opts, key=len).lstrip("-")


def path_of(context: click.Context) -> tuple[str, ...]:
    """The command's name after `deepzig`, and its subcommand's."""
    if context.parent is None:
        return ()
    return (*path_of(context.parent), context.info_name or "")


def settable(command: click.Command) -> list[click.Option]:
    """The options that environment variables can set: all but --help."""
    return [option for option in command.params if isinstance(option, click.Option)]


def variables_of(option: click.Option, path: tuple[str, ...]) -> list[str]:
    """Names of an option's environment variables, the command's own first."""
    name = long_name(option)
    owners: list[tuple[str, ...]] = [path]
    if isinstance(option, Option) and option.is_shared:
        owners.append(())
    return ["_".join((PROGRAM, *owner, name)).upper().replace("-", "_") for owner in owners]


def variable_in_use(option: click.Option) -> str | None:
    """The environment variable that sets an option now."""
    return next((name for name in option.envvar or () if os.environ.get(name)), None)
