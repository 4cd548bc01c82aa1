"""`deepzig quantize`, also installed as `quantize-model`: a checkpoint in another format.

Called by the command line; calls `checkpoint.convert`, and `evaluate.calibration` for --calibrate. Knows nothing of how
weights are rounded.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepzig.checkpoint.recipe import FORMATS, Recipe
from deepzig.checkpoint.schemes import CHANNEL, GROUP_SIZES
from deepzig.cli.command import command
from deepzig.cli.completion import complete_model
from deepzig.cli.messages import note
from deepzig.cli.options import as_bytes, hub_options, json_option, model_folder, threads_option
from deepzig.cli.progress import byte_progress, plural, scaled, token_progress
from deepzig.cli.text_files import read_text

if TYPE_CHECKING:
    import numpy as np

    from deepzig.checkpoint.convert import Progress

GROUPS = {**{str(size): size for size in GROUP_SIZES}, "channel": CHANNEL}  # what --group-size takes
SHARD_SIZE = "4GB"
Pairs = tuple[tuple[str, str], ...]


def parse_includes(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> Pairs:
    """Pairs of pattern and format. Raises click.BadParameter."""
    pairs = [tuple(value.rpartition("=")[::2]) for value in values]
    for pattern, wanted in pairs:
        if not pattern or wanted not in FORMATS:
            raise click.BadParameter(f"{pattern}={wanted} is no PATTERN=FORMAT with one of {', '.join(FORMATS)}")
    return tuple((pattern, wanted) for pattern, wanted in pairs)


@command()
@click.argument("source", metavar="SRC", shell_complete=complete_model)
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--format", "wanted", required=True, type=click.Choice(FORMATS), help="int4: routed experts int4, the rest int8."
)
@click.option("--group-size", type=click.Choice(list(GROUPS)), help="Columns that share a scale; channel: a whole row.")
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN=FORMAT",
    callback=parse_includes,
    help="Another format for some modules. May be given several times.",
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Modules to leave as they are. May be given several times."
)
@click.option(
    "--calibrate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TEXT",
    help="A text file: fit int4 scales to the inputs that it causes.",
)
@click.option("--resume", is_flag=True, help="Go on with a conversion that was interrupted.")
@click.option("--allow-nonfinite", is_flag=True, help="Go on when weights hold NaN or infinity.")
@click.option("--shard-size", default=SHARD_SIZE, show_default=True, metavar="SIZE", callback=as_bytes,
              help="Size of a file of weights.")  # fmt: skip
@json_option
@hub_options
@threads_option
def quantize(
    source: str,
    destination: Path,
    wanted: str,
    group_size: str | None,
    include: Pairs,
    exclude: tuple[str, ...],
    calibrate: Path | None,
    resume: bool,
    allow_nonfinite: bool,
    shard_size: int,
    as_json: bool,
    n_threads: int | None,
) -> None:
    """Convert a checkpoint to another format.

    SRC is a folder or a model's name, in any format that deepzig reads; DST a new folder. Patterns are
    shell patterns on module paths.

    \b
        deepzig quantize ./DeepSeek-V2-Lite-Chat ./v2-lite-int8 --format int8
        deepzig quantize ./DeepSeek-V3 ./v3-int4 --format int4 --exclude "*.kv_b_proj"
        deepzig quantize ./DeepSeek-V3 ./v3-int4 --format int4 --exclude "*.kv_b_proj" --resume
    """
    from deepzig.checkpoint.convert import Options, convert
    from deepzig.text.tokenizer import load_tokenizer
    from deepzig.threads import available_threads

    recipe = Recipe(wanted, None if group_size is None else GROUPS[group_size], include, exclude)
    directory = model_folder(source)
    load_tokenizer(directory)  # it will be copied: a broken one is an error now, not when the result is used
    n_threads = n_threads or available_threads()
    importance: dict[str, np.ndarray] = {}
    if calibrate is not None:
        if "int4" not in (wanted, *(chosen for _, chosen in include)):
            raise click.UsageError("--calibrate serves the search of int4 scales; leave it out")
        importance = measure_importance(directory, calibrate, n_threads)
    with byte_progress(f"to {wanted}") as update:

        def progress(state: "Progress") -> None:
            tensors = f"{state.tensors_done} of {state.tensors_total} tensors"
            update(state.bytes_done, state.bytes_total, tensors, state.file)

        try:
            options = Options(recipe, shard_size, allow_nonfinite, importance)
            result = convert(directory, destination, options, resume=resume, n_threads=n_threads, progress=progress)
        except KeyboardInterrupt:
            note("Interrupted; finished files stay, --resume goes on.")
            raise
    if as_json:
        click.echo(json.dumps({"destination": str(destination), "format": wanted, **asdict(result)}))
        return
    resumed = f", {result.resumed_files} of them finished before" if result.resumed_files else ""
    click.echo(f"{destination}: {scaled(result.nbytes, 'B')} in {plural(result.files, 'file')}{resumed}")


def measure_importance(directory: Path, text_file: Path, n_threads: int) -> "dict[str, np.ndarray]":
    """Run a text through the source; says on stderr which experts it never used."""
    from deepzig.engine.loading import load
    from deepzig.evaluate.calibration import calibrate

    text = read_text(text_file)
    llm = load(directory, n_threads=n_threads)
    with token_progress("calibrate") as update:
        found = calibrate(llm, text, progress=update)
    for expert in found.never_used:
        note(f"No token was sent to {expert}; its scales are searched without statistics.")
    return found.importance
