"""Options that several commands share: which model, and how it computes. Called by the commands."""

import re
from collections.abc import Callable
from typing import Any

import click

BUNDLED_MODEL = "stories"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def _model_or_bundled(_ctx: click.Context, _param: click.Parameter, model: str | None) -> str:
    if model is None:
        click.echo(f"Using the bundled model '{BUNDLED_MODEL}'; -m MODEL takes another.", err=True)
        return BUNDLED_MODEL
    return model


model_option = click.option(
    "-m",
    "--model",
    envvar="DEEPZIG_MODEL",
    callback=_model_or_bundled,
    metavar="MODEL",
    help=f"Folder of a checkpoint, or a model's name. Without it: the bundled model '{BUNDLED_MODEL}'.",
)


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that compute. Without it: DEEPZIG_THREADS, else one per physical core.",
)


cache_dtype_option = click.option(
    "--cache-dtype",
    envvar="DEEPZIG_CACHE_DTYPE",
    type=click.Choice(["f32", "int8"]),
    default="f32",
    show_default=True,
    help="'int8' rounds the latent cache: a quarter of its memory.",
)


def _as_bytes(_ctx: click.Context, param: click.Parameter, size: str | None) -> int | None:
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", size.strip().upper())
    if match is None:
        raise click.BadParameter(f"{size!r} is no size such as 512M or 4G", param=param)
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


cache_bytes_option = click.option(
    "--cache-bytes",
    envvar="DEEPZIG_CACHE_BYTES",
    callback=_as_bytes,
    metavar="SIZE",
    help="Memory for the latent cache, as 512M or 4G. Without it: a quarter of what is free.",
)


def compute_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --threads, --precision and --deterministic, which `deepzig.load` takes too (n_threads)."""
    options: list[Decorator] = [
        threads_option,
        click.option(
            "--precision", envvar="DEEPZIG_PRECISION", type=click.Choice(["exact", "fast"]), default="exact",
            show_default=True, help="'fast' rounds activations to bf16 where that speeds up prompts.",
        ),
        click.option(
            "--deterministic", envvar="DEEPZIG_DETERMINISTIC", is_flag=True,
            help="The same bits whatever the chunks, the cache and the batch; slower prompts.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
