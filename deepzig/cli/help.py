"""How the help of deepzig and of its commands looks: sections, examples, narrow terminals.

Called by `command` and by the command line as a whole, whose classes begin with Helpful, by `chat_output` for lists
and by tools/cli_reference.py. Knows no command.
"""

import inspect
import re
import shutil
from typing import Any

import click

from deepzig.cli.naming import EVERYWHERE, OWN

NARROW = 60  # columns; if fewer, the description of an option stands below it
MAX_WIDTH = 80


class Formatter(click.HelpFormatter):
    """click's formatter, for narrow terminals too."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        if width is None and click.formatting.FORCED_WIDTH is None:
            width = max(min(shutil.get_terminal_size().columns, max_width or MAX_WIDTH) - 2, 1)
        super().__init__(indent_increment, width, max_width)

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """On one line wherever it fits; click moves the arguments down unless 20 columns are left for them."""
        begin = prefix or "Usage: "
        usage = click.wrap_text(f"{begin}{prog} {args}", self.width, subsequent_indent=" " * len(begin))
        self.write(f"{usage}\n")

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

    def description_and_examples(self) -> tuple[str, list[str]]:
        """The docstring without its examples, and each of them."""
        description, *blocks = inspect.cleandoc(self.help or "").split("\n\n\b\n")
        return description, [line.strip() for block in blocks for line in block.splitlines()]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        description, examples = self.description_and_examples()
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(description)
        if examples and isinstance(formatter, Formatter):
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write_example(example)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {OWN: []}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)):
                is_last = option is self.get_help_option(ctx) and EVERYWHERE in sections
                heading = getattr(option, "heading", EVERYWHERE if is_last else OWN)
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda heading: heading == EVERYWHERE):
            if sections[heading]:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
