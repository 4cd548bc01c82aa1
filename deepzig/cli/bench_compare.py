"""`deepzig bench compare`: two results of a bench beside each other. Called by `bench`; calls `evaluate.reports`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.bench_output import Lines, form_options, number, show
from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.tables import Table

if TYPE_CHECKING:
    from deepzig.evaluate.reports import Compared, Comparison

REPORT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@command()
@click.argument("before", metavar="A.json", type=REPORT_FILE)
@click.argument("after", metavar="B.json", type=REPORT_FILE)
@form_options
def compare(before: Path, after: Path, form: str | None) -> None:
    """Compare two results of a bench.

    A and B are what `deepzig bench --json` or `deepzig bench serve --json` printed. For each figure that both have it
    prints the mean of B divided by that of A. ±: half of the interval that holds the true ratio in 95 of 100 cases,
    judged by the repetitions; if the interval holds 1, there is no clear difference. It does not see what slows down
    whole runs, such as other programs: measure A, B, A, B. Then it prints what else differs: machine, model, settings,
    version.

    \b
        deepzig bench --json > after.json
        deepzig bench compare before.json after.json
    """
    from deepzig.evaluate.reports import compare as compare_reports
    from deepzig.evaluate.reports import read_report

    comparison = compare_reports(read_report(before), read_report(after))
    show(
        form,
        list(_lines(before, after, comparison)),
        _table(comparison),
        lambda: _csv(comparison),
        lambda: _object(comparison),
    )
    if not comparison.is_same_machine:
        note("The machines differ: the ratios say as much of them as of anything else.")


def _lines(before: Path, after: Path, comparison: "Comparison") -> Lines:
    from deepzig.evaluate.reports import in_short

    lines = [("A", str(before)), ("B", str(after))]
    for each in comparison.differences:
        name = each.name.replace("_", " ")
        lines.append(("differs", f"{each.of}: {name}: {in_short(each.before)} | {in_short(each.after)}"))
    if not comparison.differences:
        lines.append(("differs", "nothing but the figures"))
    lines += [("only in A", ", ".join(comparison.only_before))] if comparison.only_before else []
    lines += [("only in B", ", ".join(comparison.only_after))] if comparison.only_after else []
    return lines


def _table(comparison: "Comparison") -> Table:
    rows = []
    for each in comparison.compared:
        unit = "ms" if each.before.unit == "s" else each.before.unit
        means = [number(figure.mean, figure.unit) for figure in (each.before, each.after)]
        rows.append([f"{each.before.name}, {unit}", *means, *_ratio(each)])
    return Table("", ["", "A", "B", "B / A", "±", ""], rows)


def _ratio(each: "Compared") -> list[str]:
    if each.ratio is None:
        return ["", "", "not known"]
    uncertainty = "" if each.ratio.uncertainty is None else f"{each.ratio.uncertainty:.3f}"
    return [f"{each.ratio.value:.3f}", uncertainty, each.ratio.verdict]


def _csv(comparison: "Comparison") -> Table:
    rows = [
        [each.before.name, each.before.unit, f"{each.before.mean:.6g}", f"{each.after.mean:.6g}", *_ratio(each)]
        for each in comparison.compared
    ]
    return Table("", ["name", "unit", "a", "b", "ratio", "uncertainty", "verdict"], rows)


def _object(comparison: "Comparison") -> dict[str, Any]:
    compared = [
        {
            "name": each.before.name,
            "unit": each.before.unit,
            "a": each.before.summary(),
            "b": each.after.summary(),
            "ratio": each.ratio and each.ratio.value,
            "uncertainty": each.ratio and each.ratio.uncertainty,
            "verdict": each.ratio.verdict if each.ratio else "not known",
        }
        for each in comparison.compared
    ]
    return {**dataclasses.asdict(comparison), "compared": compared, "is_same_machine": comparison.is_same_machine}
