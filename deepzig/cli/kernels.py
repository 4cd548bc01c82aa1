"""`deepzig kernels`: which implementation of each kernel runs here, and why. Calls `_kernels` and `tables`."""

import json
from typing import TYPE_CHECKING

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.options import json_option
from deepzig.cli.tables import UNWRAPPED, labelled, stdout_width

if TYPE_CHECKING:
    from deepzig._kernels import KernelRow

HEADING_WIDTH = 23
HEAD = ("kernel", "runs", "prompts", "available", "forced by")


@command()
@json_option
def kernels(as_json: bool) -> None:
    """Show which kernels run on this machine.

    DEEPZIG_ISA limits all kernels to an instruction set (plain, avx2, avx512, avx512_vnni, avx512_bf16, amx).
    DEEPZIG_KERNEL forces single ones:

    \b
        DEEPZIG_KERNEL=rms_norm:numba deepzig kernels
    """
    from deepzig import _kernels
    from deepzig.evaluate.machine import cpu_name

    report, isa, cpu = _kernels.build_report(), _kernels.highest_isa(), cpu_name()
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
        state = {"cpu": cpu, "highest_isa": isa, "problem": report.problem, "not_built": report.not_built}
        click.echo(json.dumps({"kernels": shown, **state}))
        return
    click.echo(labelled("CPU", cpu, HEADING_WIDTH))
    click.echo(labelled("highest instruction set", isa or "none compiled", HEADING_WIDTH))
    click.echo()
    print_table(rows)
    if report.problem:
        note(f"No compiled kernels: {report.problem}")
    for module, reason in report.not_built.items():
        if not report.problem:
            note(f"Left out of the build: {module}: {reason}")


def print_table(rows: "list[KernelRow]") -> None:
    """Print a row for each kernel; a paragraph, if the terminal is so narrow that words would be cut."""
    from rich.console import Console
    from rich.table import Table

    table, lines = Table(*HEAD, box=None, pad_edge=False), []
    for row in rows:
        prompts = row.prompts if row.prompts != row.runs else ""
        lines.append((row.stem, row.runs, prompts, " ".join(row.available), row.forced_by or "-"))
        table.add_row(*lines[-1])
    if Console(width=UNWRAPPED).measure(table).minimum <= stdout_width():
        Console(width=stdout_width()).print(table)
        return
    width = max(map(len, HEAD))
    for line in lines:
        for name, value in zip(HEAD, line, strict=True):
            if value:
                click.echo(labelled(name, value, width))
        click.echo()
