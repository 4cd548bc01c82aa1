"""Tables for people, documents and spreadsheets, and lines that begin with a name. Called by `bench_output`,
`info_lines`, `kernels` and the developers' bench. Knows nothing of their content.

Lines are wrapped on terminals only, so that other programs can read them.
"""

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from deepzig.cli.terminal_text import harmless

UNWRAPPED = 10_000  # columns, more than any line has


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of the same length."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def _filled(self) -> list[list[str]]:
        """Head and rows, without columns that are empty in all rows."""
        kept = [index for index in range(len(self.head)) if any(row[index] for row in self.rows)]
        return [[line[index] for index in kept] for line in (self.head, *self.rows)]

    def markdown(self) -> str:
        """A Markdown table: first column left-aligned, others right-aligned; without empty columns."""
        head, *rows = self._filled
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        title = f"**{self.title}**\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)

    def csv(self) -> str:
        """Head and rows as CSV."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([self.head, *self.rows])
        return lines.getvalue().rstrip("\n")

    def print(self) -> None:
        """Print to stdout, without empty columns. On a terminal that is too narrow each row becomes a paragraph."""
        from rich.console import Console
        from rich.table import Table as RichTable

        head, *rows = self._filled
        table = RichTable(box=None, pad_edge=False)
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        rows = [[harmless(_one_line(cell), sys.stdout) for cell in row] for row in rows]
        for row in rows:
            table.add_row(*row)
        plain = partial(Console, highlight=False, markup=False, emoji=False)
        console = plain(width=stdout_width())
        if self.title:  # rich would wrap it to the width of the table
            console.print(self.title, style="italic")
        if plain(width=UNWRAPPED).measure(table).maximum <= console.width:
            console.print(table)
            return
        width = max(map(len, head[1:]), default=0)
        for first, *values in rows:
            shown = [f"{name:<{width}} {value}" for name, value in zip(head[1:], values, strict=True) if value]
            console.print(first, *shown, sep="\n  ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown_cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def labelled(name: str, value: str, name_width: int) -> str:
    """A name and a value, the value wrapped beside the name."""
    first = f"{name:<{name_width}} "
    return textwrap.fill(
        harmless(value, sys.stdout), max(stdout_width(), name_width + 12), initial_indent=first,
        subsequent_indent=" " * len(first), break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def stdout_width() -> int:
    """Columns of the terminal; elsewhere more than any line needs."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNWRAPPED
