"""Every command of the command line, subcommands included, for tests that hold for all of them."""

from collections.abc import Iterator

import click

from deepzig.cli import main
from deepzig.cli.naming import settable


def all_contexts() -> Iterator[click.Context]:
    """A context of each command, as it is while its arguments are read."""
    yield from _below(main.make_context("deepzig", [], resilient_parsing=True))


def all_options() -> Iterator[tuple[click.Context, click.Option]]:
    """Each option of each command."""
    return ((context, option) for context in all_contexts() for option in settable(context.command))


def _below(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            inner = command.make_context(name, [], parent=context, resilient_parsing=True)
            yield inner
            yield from _below(inner)
