"""How the benches show what they measured: options for the form, and a report in each form. Called by `bench`,
`bench_compare` and `bench_serve`; calls `tables`.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deepzig.cli.naming import EVERYWHERE, Option, in_order
from deepzig.cli.options import json_option
from deepzig.cli.tables import Table, labelled

if TYPE_CHECKING:
    from deepzig.evaluate.figures import Figure
    from deepzig.evaluate.reports import Report

FORMS = ("json", "csv", "markdown")
LABEL_WIDTH = 9

Lines = Sequence[tuple[str, str]]  # a label and its text


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, --csv and --markdown. The command's function gets `form`: one of FORMS, None for text."""

    @click.pass_context
    @functools.wraps(command)
    def with_form(context: click.Context, *args: Any, **values: Any) -> Any:
        given = {name: values.pop(f"as_{name}") for name in FORMS}
        return command(*args, form=_nearest(context, [name for name in FORMS if given[name]]), **values)

    options = in_order(
        json_option,
        click.option("--csv", "as_csv", is_flag=True, cls=Option, heading=EVERYWHERE,
                     help="Print comma-separated values, each line complete in itself."),
        click.option("--markdown", "as_markdown", is_flag=True, cls=Option, heading=EVERYWHERE,
                     help="Print a table in Markdown."),
    )  # fmt: skip
    return options(with_form)


def _nearest(context: click.Context, forms: list[str]) -> str | None:
    """If several forms are set, that of the command line, else of the environment, else of the config file."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        found = [form for form in forms if context.get_parameter_source(f"as_{form}") is source]
        if len(found) > 1:
            raise click.UsageError(f"--{found[0]} and --{found[1]} exclude each other; leave one out", context)
        if found:
            return found[0]
    return None


def show(form: str | None, lines: Lines, table: Table, csv: Callable[[], Table], as_json: Callable[[], Any]) -> None:
    """Print to stdout in the form that was asked for."""
    if form == "json":
        click.echo(json.dumps(as_json()))
    elif form == "csv":
        click.echo(csv().csv())
    elif form == "markdown":
        click.echo("\n".join(f"- {label}: {' '.join(text.split())}" for label, text in lines) + "\n")
        click.echo(table.markdown())
    else:
        for label, text in lines:
            click.echo(labelled(label, text, LABEL_WIDTH))
        click.echo()
        table.print()


def show_report(form: str | None, report: "Report", lines: Lines, table: Table) -> None:
    """Print a report; in CSV and JSON with everything that it holds."""
    date = [("date", f"{report.date}, deepzig {report.deepzig}")]
    stopped = [] if report.is_complete else [("stopped", "by Ctrl-C, before all was measured")]
    show(form, [*lines, *date, *stopped], table, lambda: figures_table(report), report.to_json)


def figures_table(report: "Report") -> Table:
    """A row for each figure, followed by columns with all that is known of the run."""
    from deepzig.evaluate.reports import in_short

    parts = {"model": report.model, "machine": report.machine, "settings": report.settings, "beside": report.beside}
    run = {f"{part}_{name}": in_short(value) for part, values in parts.items() for name, value in values.items()}
    run |= {"deepzig": report.deepzig, "date": report.date, "is_complete": str(report.is_complete)}
    rows = [{**_figure_columns(figure), **run} for figure in report.figures]
    head = list(dict.fromkeys(name for row in rows for name in row))
    return Table("", head, [[str(row.get(name, "")) for name in head] for row in rows])


def _figure_columns(figure: "Figure") -> dict[str, Any]:
    numbers = {name: "" if value is None else f"{value:.6g}" for name, value in figure.summary().items()}
    return {"name": figure.name, **figure.details, "unit": figure.unit, "samples": len(figure.samples), **numbers}


def machine_line(machine: dict[str, Any]) -> tuple[str, str]:
    """The machine in one line."""
    return "machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"


def number(value: float | None, unit: str) -> str:
    """A number for a table; times are in milliseconds."""
    return "" if value is None else f"{value * 1000 if unit == 's' else value:.2f}"
