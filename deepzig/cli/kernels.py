"""`deepzig kernels`: which implementation of each kernel runs here, and why. Calls `_kernels`."""

import json
import sys
from typing import TYPE_CHECKING

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.options import json_option

if TYPE_CHECKING:
    from deepzig._kernels import KernelRow

UNWRAPPED = 1000  # columns, more than any line has


@command()
@json_option
def kernels(as_json: bool) -> None:
    """Show which kernels run on this machine.

    DEEPZIG_ISA limits all kernels to an instruction set (plain, avx2, avx512, avx512_bf16, amx). DEEPZIG_KERNEL forces
    single ones:

    \b
        DEEPZIG_KERNEL=rms_norm:numba deepzig kernels
    """
    from deepzig import _kernels

    report = _kernels.build_report()
    rows = _kernels.table()
    if as_json:
        shown = [
            {
                "kernel": row.stem,
                "runs": row.runs,
                "prompts": row.prompts,
                "available": list(row.available),
                "forced_by": row.forced_by,
            }
            for row in rows
        ]
        click.echo(json.dumps({"kernels": shown, "problem": report.problem, "not_built": report.not_built}))
        return
    print_table(rows)
    if report.problem:
        note(f"No compiled kernels: {report.problem}")
    for module, reason in report.not_built.items():
        if not report.problem:
            note(f"Left out of the build: {module}: {reason}")


def print_table(rows: "list[KernelRow]") -> None:
    """A line for each kernel. Outside a terminal no line is wrapped, so that other programs can read them."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kernel", "runs", "prompts", "available", "forced by", box=None, pad_edge=False)
    for row in rows:
        prompts = row.prompts if row.prompts != row.runs else ""
        table.add_row(row.stem, row.runs, prompts, " ".join(row.available), row.forced_by or "-")
    Console(width=None if sys.stdout.isatty() else UNWRAPPED).print(table)
