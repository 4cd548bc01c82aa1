"""`python -m bench`: all sections, each between two measurements of what the machine can do. Also `make bench`.

Prints tables, then the same as Markdown for the README, and one line of JSON last. Calls the modules of the sections;
measures nothing itself.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench import gemm, kernels, model, peers, tables
from bench.machine import Limits, better, describe, limits
from bench.plot import roofline
from bench.synthetic import FORMATS, default_directory
from deepzig.cli.tables import Table
from deepzig.errors import DeepzigError
from deepzig.threads import available_threads


@dataclass(frozen=True)
class Options:
    """What the sections must know."""

    n_threads: int
    n_layers: int
    formats: tuple[str, ...]
    directory: Path
    plot: Path | None


@dataclass(frozen=True)
class Outcome:
    """What a section gave: values for the JSON, and tables once its bounds are known."""

    values: Any
    tables: Callable[[Limits], list[Table]]


def run_gemm(options: Options) -> Outcome:
    """fp32 products, and the alternation of thread pools."""
    gemms, alternation = list(gemm.table(options.n_threads)), gemm.alternation(options.n_threads)
    values = {"gemm": [asdict(g) for g in gemms], "alternation": asdict(alternation)}
    return Outcome(values, lambda _: [tables.gemm_table(gemms), tables.alternation_table(alternation)])


def run_kernels(options: Options) -> Outcome:
    """Every kernel, and the plot."""
    times = []
    for time in kernels.run(options.n_threads):
        _progress(f"{time.stem}: {time.name}: {time.seconds * 1e6:.1f} us")
        times.append(time)

    def finish(bounds: Limits) -> list[Table]:
        if options.plot is not None:
            roofline(times, bounds, f"deepzig on {describe(options.n_threads)['cpu']}", options.plot)
        return [tables.kernel_table(times, bounds)]

    return Outcome([asdict(time) for time in times], finish)


def run_model(options: Options) -> Outcome:
    """The synthetic checkpoints."""
    return _model_outcome(
        model.run_synthetic(options.formats, options.n_layers, options.directory, options.n_threads)
    )


def run_stories(options: Options) -> Outcome:
    """The bundled model."""
    return _model_outcome([model.run_stories(options.n_threads)])


def _model_outcome(runs: Iterable[model.ModelRun]) -> Outcome:
    done = []
    for run in runs:
        _progress(f"{run.result.model}, {run.variant}")
        done.append(run)
    return Outcome([asdict(run) for run in done], lambda _: [tables.decode_table(done), tables.prefill_table(done)])


def run_peers(options: Options) -> Outcome:
    """Other engines."""
    runs = list(peers.run(options.n_layers, options.directory, options.n_threads))
    return Outcome([asdict(run) for run in runs], lambda _: [tables.peer_table(runs)])


SECTIONS: dict[str, Callable[[Options], Outcome]] = {
    "gemm": run_gemm,
    "kernels": run_kernels,
    "model": run_model,
    "stories": run_stories,
    "peers": run_peers,
}


def _progress(text: str) -> None:
    click.echo(text, err=True)


def _listed(known: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A callback for an option that is a list with commas, of `known` words."""
    words = tuple(known)

    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
        chosen = tuple(part.strip() for part in value.split(","))
        for part in chosen:
            if part not in words:
                raise click.BadParameter(f"{part!r} is none of {', '.join(words)}")
        return chosen

    return parse


@click.command()
@click.option("--sections", default=",".join(SECTIONS), show_default=True, callback=_listed(SECTIONS))
@click.option("--formats", default="int8,fp8,int4,bf16", show_default=True, callback=_listed(FORMATS))
@click.option("--layers", default=3, show_default=True, type=click.IntRange(min=1), help="of the synthetic model")
@click.option("--threads", type=click.IntRange(min=1), help="default: one for each core")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="of checkpoints; default in the user's cache")
@click.option("--json-out", type=click.Path(path_type=Path), help="also write the JSON to this file")
@click.option("--plot", type=click.Path(path_type=Path), help="write the roofline of section kernels to this PNG")
def main(
    sections: tuple[str, ...],
    formats: tuple[str, ...],
    layers: int,
    threads: int | None,
    directory: Path | None,
    json_out: Path | None,
    plot: Path | None,
) -> None:
    """Measure deepzig beside what bounds it. Tables, a Markdown block, and one line of JSON last."""
    for path in (json_out, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"there is no folder for {path}; make it first")
    options = Options(threads or available_threads(), layers, formats, directory or default_directory(), plot)
    machine = describe(options.n_threads)
    results: dict[str, Any] = {}
    shown: list[Table] = []
    try:
        for name in sections:
            results[name], section_tables = _run_section(name, options)
            shown += section_tables
    except DeepzigError as error:
        raise click.ClickException(str(error)) from error
    for line in tables.for_readme(machine, shown):
        click.echo(line)
    text = json.dumps({"machine": machine, "layers": layers, "sections": results})
    click.echo(text)
    if json_out is not None:
        json_out.write_text(text + "\n", encoding="utf-8")


def _run_section(name: str, options: Options) -> tuple[dict[str, Any], list[Table]]:
    """Measure bounds, section, bounds; print the tables. Returns values for the JSON, and the tables."""
    _progress(f"-- {name}")
    before = limits(options.n_threads)
    outcome = SECTIONS[name](options)
    after = limits(options.n_threads)
    made = [*outcome.tables(better(before, after)), tables.limits_table(name, before, after)]
    for table in made:
        table.print()
        click.echo()
    return {"before": asdict(before), "after": asdict(after), "values": outcome.values}, made


if __name__ == "__main__":
    main(prog_name="python -m bench")
