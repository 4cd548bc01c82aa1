"""`deepzig eval`: perplexity of a text, and divergence from a reference model. Calls `evaluate.perplexity`."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.command import command
from deepzig.cli.completion import complete_model
from deepzig.cli.options import (
    cache_dtype_option,
    compute_options,
    json_option,
    load_model,
    loading_options,
    model_option,
)
from deepzig.cli.progress import plural, token_progress
from deepzig.cli.text_files import read_text

if TYPE_CHECKING:
    from deepzig.evaluate.perplexity import Evaluation


@command()
@model_option
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="UTF-8; a line <|endoftext|> ends a document.")  # fmt: skip
@click.option("--reference", metavar="MODEL", shell_complete=complete_model,
              help="Compare predictions with those of this model, too.")  # fmt: skip
@click.option("--window", type=int, metavar="N", help="Tokens that the model sees.  [default: 2048, or its context]")
@click.option("--stride", type=int, metavar="N", help="Tokens predicted in each window but the first.  [default: all]")
@json_option
@loading_options(compute_options, cache_dtype_option)
def eval(
    model: str,
    text: Path,
    reference: str | None,
    window: int | None,
    stride: int | None,
    as_json: bool,
    loading: dict[str, Any],
) -> None:
    """Measure how well a model predicts a text.

    Prints the perplexity. With --reference also the mean and the 99th percentile of the KL divergence of the model's
    predictions from the reference's, in nats a token, and the share of tokens where both find the same token likeliest.
    Every window begins with BOS; docs/quantising.md has the rules.

    \b
        deepzig eval -m ./v2-lite-int8 --reference ./DeepSeek-V2-Lite-Chat --text article.txt
    """
    from deepzig.evaluate.perplexity import evaluate

    content = read_text(text)
    llm = load_model(model, **loading)
    other = None
    if reference is not None:  # its cache stays f32, so that --cache-dtype int8 can be judged by it
        other = load_model(reference, **loading | {"cache_dtype": "f32"})
    with token_progress("eval") as update:
        result = evaluate(llm, content, reference=other, window=window, stride=stride, progress=update)
    if as_json:
        shown = {"model": model, "reference": reference, "text": str(text), **dataclasses.asdict(result)}
        click.echo(json.dumps(shown))
    else:
        print_table(result)


def print_table(result: "Evaluation") -> None:
    """A name and a value a line."""
    rows = [
        ("perplexity", f"{result.perplexity:.4f}"),
        ("tokens", f"{result.tokens} in {plural(result.documents, 'document')}"),
        ("window", f"{result.window} tokens, stride {result.stride}"),
    ]
    if result.divergence is not None:
        rows += [
            ("mean KL", f"{result.divergence.mean_kl:.6f} nats"),
            ("99th percentile KL", f"{result.divergence.p99_kl:.6f} nats"),
            ("same top token", f"{100 * result.divergence.same_top:.2f} %"),
        ]
    for name, value in rows:
        click.echo(f"{name:<18} {value}")
