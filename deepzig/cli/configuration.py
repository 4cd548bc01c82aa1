"""The values of all options and their origins, as `deepzig info --config` shows them.

Called by `info`; calls `config_file` and the commands' own parsing of values. Shows only whether secrets are set.
"""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from deepzig.cli import config_file
from deepzig.cli.naming import Option, long_name, path_of, settable, variable_in_use, variables_of

HIDDEN = "(set)"
ALL = "all commands"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Setting:
    """An option's value and what gave it."""

    value: Any
    source: str  # COMMAND_LINE, "environment", "file" or "default"
    is_shared: bool  # one variable or key may set it for all commands
    name: str | None = None  # of the variable, or of the file's key


def settings(context: click.Context) -> dict[str, dict[str, Setting]]:
    """Command -> option -> setting. `context`: of the command that runs, whose command line counts."""
    found = {}
    for other in config_file.commands_below(context.find_root()):
        is_running = path_of(other) == path_of(context)
        if not is_running:
            other.default_map = config_file.Defaults(other)
        found[" ".join(path_of(other))] = {
            long_name(option): _setting(option, context if is_running else other)
            for option in settable(other.command)
        }  # fmt: skip
    return found


def as_json(context: click.Context) -> str:
    """One object: the file, and every option of every command."""
    file = config_file.of(context)
    commands = {
        name: {option: {"value": setting.value, "source": setting.source, "name": setting.name}
               for option, setting in options.items()}
        for name, options in settings(context).items()
    }  # fmt: skip
    return json.dumps({"config_file": str(file.path) if file else None, "commands": commands})


def lines(context: click.Context) -> Iterator[str]:
    """Lines for people: first what all commands share, then what is special to one command."""
    file = config_file.of(context)
    yield f"config file: {file.path if file else _none_read()}"
    for title, options in _grouped(settings(context)).items():
        yield ""
        yield title
        for name, setting in options.items():
            origin = f"{setting.source} {setting.name or ''}".rstrip()
            yield f"  --{name:<20} {_shown(setting.value):<16} {origin}"


def _none_read() -> str:
    path = config_file.location()
    return f"none; {path} would be read" if path else f"none; you have no home folder, {config_file.VARIABLE} names one"


def _grouped(commands: dict[str, dict[str, Setting]]) -> dict[str, dict[str, Setting]]:
    found: dict[str, list[Setting]] = defaultdict(list)
    for options in commands.values():
        for name, setting in options.items():
            if setting.is_shared and setting.source != COMMAND_LINE:
                found[name].append(setting)
    same = {name: values[0] for name, values in found.items() if values.count(values[0]) == len(values)}
    own = {
        command: {name: setting for name, setting in options.items() if setting != same.get(name)}
        for command, options in commands.items()
    }
    return {title: options for title, options in ({ALL: same} | own).items() if options}


def _setting(option: click.Option, context: click.Context) -> Setting:
    path = path_of(context)
    is_shared = isinstance(option, Option) and option.is_shared
    if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
        return Setting(_plain(option, context, context.params.get(str(option.name), True)), COMMAND_LINE, is_shared)
    option.envvar = variables_of(option, path)  # as `Command` does before it parses
    value, source = option.consume_value(context, {})
    if source is ParameterSource.ENVIRONMENT:
        return Setting(_plain(option, context, value), "environment", is_shared, variable_in_use(option))
    if source is ParameterSource.DEFAULT_MAP and (file := config_file.of(context)):
        return Setting(_plain(option, context, value), "file", is_shared, file.key_of(option, path))
    return Setting(_plain(option, context, option.to_info_dict()["default"]), "default", is_shared)


def _plain(option: click.Option, context: click.Context, value: Any) -> Any:
    """The value as JSON has it; a value of the wrong type stays as it was written."""
    if value is None:
        return _absent(option)
    if option.hide_input:
        return HIDDEN
    with suppress(click.BadParameter):
        value = option.type_cast_value(context, value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _absent(option: click.Option) -> Any:
    """The value of an option that nothing sets; None, too, for a flag like --think/--no-think."""
    if option.is_flag and not option.secondary_opts:
        return False
    return [] if option.multiple else None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, []):
        return "-"
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)
