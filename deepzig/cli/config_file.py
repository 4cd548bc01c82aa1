"""The config file: values of options that a person keeps, in TOML.

    model = "~/models/DeepSeek-V2-Lite-Chat"    # options that several commands have, for all of them

    [serve]                                     # options of one command; [bench.serve] of a subcommand
    port = 8080

Called by `command`, for the defaults of a command, and by `configuration`, which shows them. Read when the first value
is asked for. The whole file is checked, so that every command reports a mistake. Knows no command by name.
"""

import os
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import click

from deepzig.cli.naming import Option, long_name, path_of, settable
from deepzig.cli.user_folders import user_folder

VARIABLE = "DEEPZIG_CONFIG"
KEPT = f"{__name__}.kept"
TYPES = {bool: "true or false", int: "a whole number", float: "a decimal number", str: "text", list: "a list"}


@dataclass(frozen=True)
class ConfigFile:
    """The content of the file, checked against the existing options."""

    path: Path
    tables: dict[tuple[str, ...], dict[str, Any]]  # path of the command, () for all -> name of the option -> value

    def key_of(self, option: click.Option, path: tuple[str, ...]) -> str | None:
        """The key that sets an option of the command at `path`."""
        owner = self._owner(option, path)
        return None if owner is None else ".".join((*owner, long_name(option)))

    def values(self, command: click.Command, path: tuple[str, ...]) -> dict[str, Any]:
        """Parameter's name -> value, of those that the file sets."""
        return {
            str(option.name): self.tables[owner][long_name(option)]
            for option in settable(command)
            if (owner := self._owner(option, path)) is not None
        }

    def _owner(self, option: click.Option, path: tuple[str, ...]) -> tuple[str, ...] | None:
        """The table that sets an option: the command's own, else the one for all commands if the option is shared."""
        owners = (path, ()) if isinstance(option, Option) and option.is_shared else (path,)
        return next((owner for owner in owners if long_name(option) in self.tables.get(owner, {})), None)


def location() -> Path | None:
    """DEEPZIG_CONFIG, else config.toml where such files are kept; None if there is no such place."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    folder = user_folder("XDG_CONFIG_HOME", ".config")
    return folder and folder / "config.toml"


def of(context: click.Context) -> ConfigFile | None:
    """The file, read once for all commands of a run; None if there is none. Raises click.UsageError."""
    if KEPT not in context.meta:
        path = location()
        context.meta[KEPT] = path and _read(path, context)
    kept: ConfigFile | None = context.meta[KEPT]
    return kept


class Defaults(UserDict[str, Any]):
    """The file's values for a command, as click's default_map; read only when needed, which --help does not."""

    def __init__(self, context: click.Context) -> None:
        self._context = context

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        file = of(self._context)
        return file.values(self._context.command, path_of(self._context)) if file else {}


def _read(path: Path, context: click.Context) -> ConfigFile | None:
    try:
        text = path.read_bytes()
    except OSError as error:
        if not os.environ.get(VARIABLE) and not os.path.exists(path):  # HOME may be /dev/null, or root's after sudo
            return None
        reason = f"no such file ({VARIABLE} names it)" if isinstance(error, FileNotFoundError) else error.strerror
        raise click.UsageError(f"{path}: {reason}", context) from error
    import tomllib  # here, since most have no such file

    try:
        document = tomllib.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise click.UsageError(f"{path}: lists or tables within each other are too deep", context) from error
    except ValueError as error:  # of TOML and of UTF-8
        raise click.UsageError(f"{path}: {error}", context) from error
    return ConfigFile(path, dict(_Check(path, context).tables(document)))


@dataclass(frozen=True)
class _Check:
    """Goes through a document and refuses what no command knows."""

    path: Path
    context: click.Context  # for the hint below an error

    def tables(self, document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        root = self.context.find_root()
        everywhere = {}
        for context in commands_below(root):
            for option in settable(context.command):
                if isinstance(option, Option) and option.is_shared:
                    everywhere[long_name(option)] = option
        yield from self._table(document, root, everywhere)

    def _table(
        self, table: dict[str, Any], context: click.Context, options: dict[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        path = path_of(context)
        inner = {str(context.info_name): context for context in _subcommands(context)}
        values = {}
        for key, value in table.items():
            where = ".".join((*path, key))
            if isinstance(value, dict) and key in inner:
                command = inner[key].command
                yield from self._table(value, inner[key], {long_name(option): option for option in settable(command)})
            elif isinstance(value, dict):
                self._refuse(where, "there is no such command", _nearest(key, inner))
            elif key not in options:
                owners = [name for name, other in inner.items() if key in map(long_name, settable(other.command))]
                advice = f"; it belongs below [{owners[0]}]" if owners else _nearest(key, options)
                self._refuse(where, "there is no such option", advice)
            else:
                values[key] = self._value(where, value, options[key])
        yield path, values

    def _value(self, where: str, value: Any, option: click.Option) -> Any:
        wanted = _type_of(option)
        items = value if option.multiple and isinstance(value, list) else [value]
        if option.multiple and not isinstance(value, list):
            self._refuse(where, "must be a list, in [ ]")
        for item in items:
            if type(item) is not wanted and not (wanted is float and type(item) is int):
                self._refuse(where, f"must be {TYPES[wanted]}, not {TYPES.get(type(item), 'a date')}")
            if not isinstance(option.type, click.Path):  # a file need be there only for the command that reads it
                try:
                    option.type.convert(item, option, self.context)
                except click.BadParameter as error:
                    self._refuse(where, error.message)
        at_home = [os.path.expanduser(item) if str(item).startswith("~/") else item for item in items]
        return at_home if option.multiple else at_home[0]

    def _refuse(self, where: str, complaint: str, advice: str = "") -> NoReturn:
        raise click.UsageError(f"{self.path}: {where}: {complaint}{advice}", self.context)


def commands_below(context: click.Context) -> Iterator[click.Context]:
    """A context for each command of a group, and for their subcommands."""
    for inner in _subcommands(context):
        yield inner
        yield from commands_below(inner)


def _subcommands(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            if command := group.get_command(context, name):
                yield click.Context(command, info_name=name, parent=context)


def _type_of(option: click.Option) -> type:
    if option.is_flag:
        return bool
    kinds: tuple[tuple[type[Any], type], ...] = (
        (click.types.IntParamType, int),
        (click.types.FloatParamType, float),
    )
    return next((wanted for kind, wanted in kinds if isinstance(option.type, kind)), str)


def _nearest(name: str, known: Any) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
