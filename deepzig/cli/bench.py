"""`deepzig bench`: how fast a model reads prompts and decodes here; `compare` and `serve` are its subcommands.

Called by the command line; calls `evaluate.speed` and `bench_output`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deepzig.cli.bench_compare import compare
from deepzig.cli.bench_output import form_options, machine_line, number, show_report
from deepzig.cli.bench_serve import serve
from deepzig.cli.command import group
from deepzig.cli.options import (
    cache_bytes_option,
    cache_dtype_option,
    compute_options,
    load_model,
    loading_options,
    model_option,
)
from deepzig.cli.progress import plural, scaled, timed_progress
from deepzig.cli.tables import Table

if TYPE_CHECKING:
    from deepzig.engine.llm import LLM
    from deepzig.evaluate.reports import Report
    from deepzig.evaluate.speed import SpeedTest


MAX_DIGITS = 18  # of a number; Python reads no more than 4300


def _numbers(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of an option that takes several, with commas or repeated; 0 alone means none."""
    parts = [part.strip() for value in values for part in value.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS):
            raise click.BadParameter(f"{part[:MAX_DIGITS]!r} is no number; give some as in 1,2,4", param=param)
    return tuple(dict.fromkeys(map(int, parts)))


def numbers_option(name: str, target: str, default: str, text: str) -> Callable[..., Any]:
    """An option that takes several numbers."""
    return click.option(
        name, target, multiple=True, default=(default,), show_default=True, callback=_numbers, metavar="N[,N]",
        help=text,
    )  # fmt: skip


@group(invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@model_option
@numbers_option("--prompt", "prompts", "512", "Lengths of prompts to read, in tokens; 0: none.")
@numbers_option("--decode", "answers", "64", "Lengths of answers to decode, in tokens; 0: none.")
@numbers_option("--depth", "depths", "0", "Tokens that are in the cache already, before prompt or answer.")
@numbers_option("--concurrency", "concurrencies", "1", "Requests at once; the speed is that of all together.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="How often each is measured, after a warm-up.")  # fmt: skip
@form_options
@loading_options(compute_options, cache_dtype_option, cache_bytes_option)
@click.pass_context
def bench(
    context: click.Context,
    model: str,
    prompts: tuple[int, ...],
    answers: tuple[int, ...],
    depths: tuple[int, ...],
    concurrencies: tuple[int, ...],
    repetitions: int,
    form: str | None,
    loading: dict[str, Any],
) -> None:
    """Measure how fast a model, a server or a change is.

    Without a COMMAND: how many tokens a second of prompts a model reads (pp512: a prompt of 512), and how many it
    decodes (tg64: 64 after the first), as mean and standard deviation. @N: N tokens already in the cache; xN: N
    requests at once; "of read": decoding's share of the memory's speed. Prompts are random tokens; answers are greedy,
    without speculation. Ctrl-C ends with what has been measured.

    \b
        deepzig bench -m ./DeepSeek-V2-Lite-Chat
        deepzig bench --prompt 128 --decode 32 --depth 0,256 --concurrency 1,4
        deepzig bench --json > before.json
    """
    if context.invoked_subcommand is not None:
        _refuse_own_options(context)
        return
    from deepzig.evaluate.speed import check_room
    from deepzig.evaluate.speed_report import SpeedRun

    tests = list(_tests(prompts, answers, depths, concurrencies))
    if not tests:
        raise click.UsageError("nothing to measure; give --prompt or --decode above 0")
    kept = ("precision", "deterministic", "cache_dtype")
    settings = {**{name: loading[name] for name in kept}, "repetitions": repetitions}
    with load_model(model, **loading) as llm:
        check_room(llm, tests)
        run = SpeedRun(llm, settings)
        try:
            _measure(llm, tests, repetitions, run.samples)
            report = run.finish()
        except KeyboardInterrupt:
            if run.samples:
                _show(form, run.report(is_complete=False))
            raise
        _show(form, report)


def _refuse_own_options(context: click.Context) -> None:
    """Refuse options before a subcommand, which does not know them."""
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if given and option.expose_value:
            raise click.UsageError(f"{max(option.opts, key=len)} is for a model; {context.invoked_subcommand} takes "
                                   "only the options after its name", context)  # fmt: skip


def _tests(
    prompts: tuple[int, ...], answers: tuple[int, ...], depths: tuple[int, ...], concurrencies: tuple[int, ...]
) -> "Iterator[SpeedTest]":
    from deepzig.evaluate.speed import SpeedTest

    for concurrency in concurrencies:
        for depth in depths:
            yield from (SpeedTest("prompt", n, depth, concurrency) for n in prompts if n)
            yield from (SpeedTest("decode", n, depth, concurrency) for n in answers if n)


def _measure(
    llm: "LLM", tests: "list[SpeedTest]", repetitions: int, samples: "dict[SpeedTest, list[float]]"
) -> None:
    """Measure into `samples`, which keeps the results so far if this is interrupted."""
    from deepzig.evaluate.speed import measure

    runs = repetitions + 1  # of a test: one warms up
    total = len(tests) * runs
    with timed_progress("bench", "runs") as update:
        update(0, total, tests[0].name)
        for done, (test, rate) in enumerate(measure(llm, tests, repetitions), 1):
            if rate is not None:
                samples.setdefault(test, []).append(rate)
            update(done, total, *(following.name for following in tests[done // runs :][:1]))


def _show(form: str | None, report: "Report") -> None:
    from deepzig.evaluate.reports import in_short

    model, machine, settings = report.model, report.machine, report.settings
    prompts = "".join(f", prompts {label}" for label in sorted(set(machine["kernels_for_prompts"].values())))
    lines = [
        ("model", f"{model['name']}, {scaled(model['parameters'], '')} parameters, "
                  f"{scaled(model['bytes'], 'B')}: {', '.join(model['formats'])}"),
        machine_line(machine),
        ("memory", f"read at {scaled(report.beside['read_bandwidth'], 'B')}/s, which bounds decoding"),
        ("computing", f"{plural(machine['threads'], 'thread')}, kernels {in_short(machine['kernels'])}{prompts}, "
                      f"precision {settings['precision']}, cache {settings['cache_dtype']}"),
    ]  # fmt: skip
    rows = [
        [
            figure.name,
            *(number(value, figure.unit) for value in (figure.mean, figure.deviation)),
            f"{figure.details['share_of_read']:.2f}" if "share_of_read" in figure.details else "",
            str(len(figure.samples)),
        ]
        for figure in report.figures
    ]
    show_report(form, report, lines, Table("", ["test", "tok/s", "±", "of read", "runs"], rows))


bench.add_command(compare)
bench.add_command(serve)
