"""Writes docs/cli.md from the help of every command, for `make docs`; tests/test_docs.py compares them.

The page depends on the commands alone: 80 columns, no environment, no config file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"
COLUMNS = 80
INTRODUCTION = """\
# Command line
What `--help` says of each command, written by `make docs`. Environment variables and a config file can set
options too: [configuration.md](configuration.md).
"""


def page() -> str:
    """The page as it should be."""
    sys.path.insert(0, str(ROOT))
    from deepzig.cli import main
    from deepzig.cli.config_file import commands_below

    root = click.Context(main, info_name="deepzig", help_option_names=["-h", "--help"])
    return "\n".join([INTRODUCTION, *(part for context in (root, *commands_below(root)) for part in _section(context))])


def _section(context: click.Context) -> Iterator[str]:
    from deepzig.cli.help import Formatter, Helpful

    command = context.command
    assert isinstance(command, Helpful)
    description, examples = command.description_and_examples()
    yield f"## {context.command_path}\n{description}\n"
    yield "".join(f"    {line}\n" for line in examples)
    formatter = Formatter(width=COLUMNS)
    command.format_usage(context, formatter)
    command.format_options(context, formatter)
    yield f"```text\n{formatter.getvalue()}```\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
