"""Options that several commands share: which model, and how it computes. Called by the commands.

Calls `model_names` and `hub` for models that must be fetched first.
"""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.checkpoint import model_names
from deepzig.cli.completion import complete_model
from deepzig.cli.messages import note
from deepzig.cli.naming import EVERYWHERE, Decorator, in_order, shared_option
from deepzig.threads import MAX_THREADS

if TYPE_CHECKING:
    from deepzig.checkpoint.hub import Download
    from deepzig.engine.llm import LLM

_IS_DEFAULT = f"{__name__}.is_default"
MODEL, COMPUTING = "Model", "Computing"  # headings of the help

json_option = shared_option(
    "--json", "as_json", is_flag=True, heading=EVERYWHERE, help="Print one JSON object instead of text."
)


def _model_or_bundled(ctx: click.Context, _param: click.Parameter, model: str | None) -> str | None:
    """The named model, else the bundled one."""
    if model is not None or ctx.resilient_parsing:
        return model
    ctx.meta[_IS_DEFAULT] = True
    return model_names.BUNDLED_MODEL


def _keep(context: click.Context, option: click.Parameter, is_on: bool) -> None:
    context.meta[f"{__name__}.{option.name}"] = is_on


def _is_on(name: str) -> bool:
    """Whether --yes or --offline holds for the command that runs."""
    return bool(click.get_current_context().meta.get(f"{__name__}.{name}"))


hub_options = in_order(  # --yes and --offline, which the command's function need not know
    shared_option("--yes", is_flag=True, expose_value=False, heading=MODEL,
                  callback=_keep, help="Download a model of more than 1 GB without asking."),
    shared_option("--offline", is_flag=True, expose_value=False, heading=MODEL,
                  callback=_keep, help="Download nothing."),
)  # fmt: skip


model_option = in_order(  # -m, --yes and --offline
    shared_option(
        "-m",
        "--model",
        heading=MODEL,
        callback=_model_or_bundled,
        shell_complete=complete_model,
        metavar="MODEL",
        help="Folder of a checkpoint, or org/name of the Hugging Face hub. "
        f"Without it: the bundled '{model_names.BUNDLED_MODEL}'.",
    ),
    hub_options,
)


def model_folder(model: str, with_weights: bool = True) -> Path:
    """The folder of a model. Shows the size of a download, asks before more than 1 GB, shows progress.

    Says once that nobody named a model, if so.
    """
    if click.get_current_context().meta.pop(_IS_DEFAULT, False):
        note(f"Using the bundled model '{model_names.BUNDLED_MODEL}'; -m MODEL takes another.")
    return model_names.find_model(model, with_weights, fetch_asking, offline=_is_on("offline"))


def load_model(model: str, **loading: Any) -> "LLM":
    """Load a model; fetch it first as `model_folder` does. loading: arguments of `load_present`."""
    model_folder(model)
    return load_present(model, **loading)


def load_present(model: str, *, n_machines: int = 1, **loading: Any) -> "LLM":
    """Load a model that is on this machine, here or on several machines. loading: arguments of `deepzig.load`."""
    if n_machines > 1:
        from deepzig.distributed.loading import load_distributed

        return load_distributed(model, n_machines, **loading)
    from deepzig.engine.loading import load

    return load(model, **loading)


def on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def fetch_asking(download: "Download") -> Path:
    """Download; on a terminal, ask first."""
    from deepzig.checkpoint.hub import fetch
    from deepzig.cli.progress import byte_progress, scaled

    what = f"{download.model}: {scaled(download.nbytes, 'B')} to download to {download.folder}"
    may_fetch = _is_on("yes")
    is_asked = download.nbytes > model_names.ASKED_ABOVE and not may_fetch and on_terminal()
    if not is_asked:
        note(what)
    elif not click.confirm(f"{what}\nGo on?", err=True):
        raise click.Abort
    with byte_progress("fetch") as update:
        return fetch(download, update) if is_asked else model_names.fetch_unasked(download, update, yes=may_fetch)


threads_option = shared_option(
    "--threads",
    "n_threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    heading=COMPUTING,
    help="Threads that compute. Without it: one per physical core.",
)

cache_dtype_option = shared_option(
    "--cache-dtype",
    heading=COMPUTING,
    type=click.Choice(["f32", "int8"]),
    default="f32",
    show_default=True,
    help="'int8' rounds the latent cache: a quarter of its memory.",
)


def as_bytes(_ctx: click.Context, param: click.Parameter, size: str | None) -> int | None:
    """Bytes of "4GB", "500 M" or "1000000", decimal, or of "4GiB", binary. Raises click.BadParameter."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*(?:([KMGT])(I)?)?B?", size.strip().upper())
    nbytes = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")) if match else 0
    if nbytes < 1:
        raise click.BadParameter(f"{size!r} is no size such as 512MB or 4GiB", param=param)
    return nbytes


cache_bytes_option = shared_option(
    "--cache-bytes",
    heading=COMPUTING,
    callback=as_bytes,
    metavar="SIZE",
    help="Memory for the latent cache, such as 512MB or 4GiB. Without it: a quarter of what is free.",
)


compute_options = in_order(
    threads_option,
    shared_option(
        "--precision", heading=COMPUTING, type=click.Choice(["exact", "fast"]), default="exact", show_default=True,
        help="'fast' rounds activations where that speeds up prompts.",
    ),
    shared_option(
        "--deterministic", heading=COMPUTING, is_flag=True,
        help="Compute the same bits whatever the chunks, the cache and the batch; prompts are slower.",
    ),
    shared_option(
        "--machines", "n_machines", heading=COMPUTING, type=click.IntRange(min=1), default=1, show_default=True,
        metavar="N", help="Machines of a Ray cluster that share the layers, this one included.",
    ),
)  # fmt: skip

cache_options = in_order(
    cache_dtype_option,
    cache_bytes_option,
    shared_option(
        "--context-shift", is_flag=True, heading=COMPUTING,
        help="When the context is full, drop its oldest tokens, except the first 64, and go on.",
    ),
    shared_option(
        "--prompt-cache", heading=COMPUTING, metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
        help="Keep computed prompts in this folder for later runs; unused if a server has API keys.",
    ),
)  # fmt: skip
_LOADING = (
    "n_threads", "precision", "deterministic", "n_machines",
    "cache_dtype", "cache_bytes", "context_shift", "prompt_cache",
)  # fmt: skip


def loading_options(*options: Decorator) -> Decorator:
    """Options for `load_present`; the command's function gets their values together as `loading`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_loading(**values: Any) -> Any:
            loading = {name: values.pop(name) for name in _LOADING if name in values}
            return command(loading=loading, **values)

        return in_order(*options)(with_loading)

    return add
