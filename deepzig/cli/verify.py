"""`deepzig verify`: hashes, headers and values of a checkpoint folder. Calls `checkpoint.verify`."""

import dataclasses
import json
import os

import click

from deepzig.cli.command import command
from deepzig.cli.completion import complete_model
from deepzig.cli.messages import note
from deepzig.cli.options import hub_options, json_option, model_folder
from deepzig.cli.progress import byte_progress, plural, scaled
from deepzig.errors import CheckpointError

SHOWN = 20  # problems


@command()
@click.argument("model", shell_complete=complete_model)
@json_option
@hub_options
def verify(model: str, as_json: bool) -> None:
    """Check a checkpoint, byte by byte.

    MODEL is a folder or a model's name. Files that `deepzig quantize` wrote are compared with the hashes in their
    manifest. In every checkpoint, headers, names, shapes and values are checked.

    \b
        deepzig verify ./v2-lite-int8
    """
    from deepzig.checkpoint.manifest import MANIFEST_FILE
    from deepzig.checkpoint.verify import bytes_to_read
    from deepzig.checkpoint.verify import verify as run

    directory = model_folder(model)
    reads_twice = os.path.exists(directory / MANIFEST_FILE)  # no exception where a folder may not be searched
    with byte_progress("verify, reading twice" if reads_twice else "verify") as update:
        total, done = bytes_to_read(directory), 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            update(min(done, total), total)

        report = run(directory, advance)
        if total:
            update(total, total)  # headers are not counted, and incomplete files may be shorter
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    else:
        for problem in report.problems[:SHOWN]:
            click.echo(problem)
        if len(report.problems) > SHOWN:
            click.echo(f"and {len(report.problems) - SHOWN} more")
        compared = "hashes as in the manifest" if report.has_manifest else "no manifest, so no hashes to compare"
        verdict = plural(len(report.problems), "problem") if report.problems else f"sound; {compared}"
        size = f"{plural(report.tensors, 'tensor')}, {scaled(report.nbytes, 'B')} in {plural(report.files, 'file')}"
        click.echo(f"{model}: {size}: {verdict}")
    for remark in report.remarks:
        note(f"Note: {remark}")
    if report.problems:
        raise CheckpointError(f"{model} is not sound; fetch it again, or convert it again")
