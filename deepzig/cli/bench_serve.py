"""`deepzig bench serve`: how fast a server answers, this or any other that speaks OpenAI's API.

Called by `bench`; calls `evaluate.http_load` and `bench_output`.
"""

from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.bench_output import form_options, number, show_report
from deepzig.cli.command import command
from deepzig.cli.messages import warn
from deepzig.cli.progress import timed_progress
from deepzig.cli.tables import Table
from deepzig.errors import NetworkError

if TYPE_CHECKING:
    from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target
    from deepzig.evaluate.reports import Report

DEFAULT_CONCURRENCY = 1
SHOWN_ERRORS = 5


@command()
@click.argument("url", metavar="URL")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True,
              help="/v1/completions or /v1/chat/completions.")  # fmt: skip
@click.option("--model", metavar="ID", help="Name of the model for the server.  [default: the first that it lists]")
@click.option("--api-key", metavar="KEY", hide_input=True,
              help="DEEPZIG_BENCH_SERVE_API_KEY keeps it out of the list of processes.")  # fmt: skip
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
              help="How many are sent, after two to warm up.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N",
              help=f"Requests at once.  [default: {DEFAULT_CONCURRENCY}, with --rate no limit]")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="R",
              help="Send R requests a second, at random moments, whether or not the earlier ones are answered.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N",
              help="Length of each prompt, about: common words, by the server's count.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
              help="Greatest length of each answer.")  # fmt: skip
@click.option("--ignore-eos", is_flag=True, help="Ask for answers of just --max-tokens; not all servers know that.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True,
              metavar="SECONDS", help="For a whole answer.")  # fmt: skip
@form_options
def serve(
    url: str,
    endpoint: str,
    model: str | None,
    api_key: str | None,
    requests: int,
    concurrency: int | None,
    rate: float | None,
    prompt_tokens: int,
    max_tokens: int,
    ignore_eos: bool,
    timeout: float,
    form: str | None,
) -> None:
    """Measure how fast a server answers.

    Sends streamed requests to any server that speaks OpenAI's API, and prints the time to the first token, the mean
    time of each further token of an answer, the gaps between what arrives, and tokens a second of all answers
    together. With --rate a request's time begins when it was due, so that waiting for its turn counts. Prompts are
    random words, so that no server has read one before. Ctrl-C ends with what has been measured.

    \b
        deepzig bench serve http://127.0.0.1:8000
        deepzig bench serve http://127.0.0.1:8000 --concurrency 8 --ignore-eos
        deepzig bench serve https://llm.example/v1 --endpoint chat --rate 2 --json
    """
    from deepzig.evaluate.http_load import LoadPlan, LoadResult, Target, run

    if rate is None and concurrency is None:
        concurrency = DEFAULT_CONCURRENCY
    target = Target(url, "chat" if endpoint == "chat" else "completions", model, api_key)
    plan = LoadPlan(requests, prompt_tokens, max_tokens, concurrency, rate, ignore_eos, timeout)
    result = LoadResult()
    try:
        with timed_progress("bench", "requests") as update:

            def on_change() -> None:
                failed = result.errors.total()
                update(len(result.answers) + failed, requests, *([f"{failed} failed"] if failed else []))

            run(target, plan, result, on_change)
    except KeyboardInterrupt:
        if result.answers:
            _show(form, _report(target, plan, result, is_complete=False))
        raise
    if not result.answers:
        ((reason, count),) = result.errors.most_common(1)
        raise NetworkError(f"all {requests} requests failed, {count} with: {reason}")
    _show(form, _report(target, plan, result, is_complete=True))
    if result.errors:
        warn(f"{result.errors.total()} of {requests} requests failed; the figures are those of the others.")


def _report(target: "Target", plan: "LoadPlan", result: "LoadResult", *, is_complete: bool) -> "Report":
    from dataclasses import asdict

    from deepzig.evaluate.machine import describe_machine
    from deepzig.evaluate.reports import new_report

    return new_report(
        "deepzig bench serve",
        machine=describe_machine(),
        model={"name": result.model, "url": target.base_url, "endpoint": target.endpoint},
        settings=asdict(plan),
        figures=result.figures(),
        beside={
            "answered": len(result.answers),
            "failed": result.errors.total(),
            "errors": dict(result.errors.most_common()),
            "seconds": result.seconds,
            "prompt_tokens": result.prompt_tokens,
            "answer_tokens": result.answer_tokens,
            "tokens_counted_by": "server" if result.counts_tokens else "chunks",
        },
        is_complete=is_complete,
    )


def _show(form: str | None, report: "Report") -> None:
    counts, plan, machine = report.beside, report.settings, report.machine
    prompts = f"{counts['prompt_tokens']:.0f}" if counts["prompt_tokens"] else f"about {plan['prompt_tokens']}"
    answers = counts["answer_tokens"] / counts["answered"]
    chunks = "" if counts["tokens_counted_by"] == "server" else ", counted by chunks"
    (rate,) = (figure.mean for figure in report.figures if figure.unit == "tok/s")
    lines = [
        ("server", f"{report.model['url']}, {report.model['endpoint']}, model {report.model['name']}"),
        ("client", f"{machine['cpu']}, {machine['cores']} cores"),
        ("requests", f"{_load(plan)}: {counts['answered']} answered, {counts['failed']} failed"),
        ("tokens", f"prompts of {prompts}, answers of {answers:.0f}{chunks}"),
        ("speed", f"{rate:.1f} tok/s of answers, {counts['answered'] / counts['seconds']:.2f} requests/s"),
    ]
    for reason, count in list(counts["errors"].items())[:SHOWN_ERRORS]:
        lines.append(("failed", f"{count} x {reason}"))
    rows = []
    for figure in report.figures:
        if figure.unit == "s":
            shown = [figure.mean, figure.quantile(0.5), figure.quantile(0.99), max(figure.samples)]
            rows.append([figure.name, *(number(value, figure.unit) for value in shown)])
    show_report(form, report, lines, Table("", ["ms", "mean", "p50", "p99", "longest"], rows))


def _load(plan: dict[str, Any]) -> str:
    at_once = f"{plan['concurrency']} at once" if plan["concurrency"] else ""
    rate = f"{plan['rate']:g} a second" if plan["rate"] else ""
    return ", ".join(part for part in (rate, at_once) if part)
