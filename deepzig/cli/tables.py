"""Tables of results, for people, for documents and for spreadsheets. Called by `bench_output` and
by the developers' `python -m bench`. Knows nothing of what stands in them.
"""

import csv
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

UNWRAPPED = 1000  # columns, more than any line has


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of the same length."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """With the first column to the left and the others to the right."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        title = f"**{self.title}**\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def csv(self) -> str:
        """Head and rows."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([self.head, *self.rows])
        return lines.getvalue().rstrip("\n")

    def print(self) -> None:
        """To stdout, without columns that are empty. On a terminal that is too narrow each row becomes a paragraph;
        outside a terminal no line is wrapped, so that other programs can read them."""
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(box=None, pad_edge=False)
        kept = [index for index in range(len(self.head)) if any(row[index] for row in self.rows)]
        for index in kept:
            table.add_column(self.head[index], justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(row[index] for index in kept))
        console = Console(width=stdout_width(), highlight=False)
        if self.title:  # rich would wrap it to the width of the table
            console.print(self.title, style="italic", markup=False)
        if Console(width=UNWRAPPED).measure(table).maximum <= console.width:
            console.print(table)
        else:
            for row in self.rows:
                console.print(row[0], *self._paragraph(row), sep="\n  ", markup=False)

    def _paragraph(self, row: Sequence[str]) -> Iterator[str]:
        """What stands behind the first column, a value a line."""
        width = max(map(len, self.head[1:]))
        yield from (f"{name:<{width}} {value}" for name, value in zip(self.head[1:], row[1:], strict=True) if value)


def stdout_width() -> int:
    """Columns of the terminal; elsewhere so many that no line reaches them."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNWRAPPED
