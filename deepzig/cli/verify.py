"""`deepzig verify`: hashes, headers and values of a checkpoint folder. Calls `checkpoint.verify`."""

import dataclasses
import json
from pathlib import Path

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.options import json_option
from deepzig.cli.progress import byte_progress, scaled
from deepzig.errors import CheckpointError

SHOWN = 20  # problems


@command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def verify(directory: Path, as_json: bool) -> None:
    """Check a checkpoint, byte by byte.

    What `deepzig quantize` wrote is compared with the hashes in its manifest. Of any checkpoint, the headers, names,
    shapes and values are looked at.

    \b
        deepzig verify ./v2-lite-int8
    """
    from deepzig.checkpoint.verify import bytes_to_read
    from deepzig.checkpoint.verify import verify as run

    with byte_progress("verify") as update:
        total, done = bytes_to_read(directory), 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            update(min(done, total), total)

        report = run(directory, advance)
        update(total, total)  # headers are not counted, and what is not whole may be shorter
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    else:
        for problem in report.problems[:SHOWN]:
            click.echo(problem)
        compared = "hashes as in the manifest" if report.has_manifest else "no manifest, so no hashes to compare"
        verdict = f"{len(report.problems)} problems" if report.problems else f"sound; {compared}"
        size = f"{report.tensors} tensors, {scaled(report.nbytes, 'B')} in {report.files} files"
        click.echo(f"{directory}: {size}: {verdict}")
    for remark in report.remarks:
        note(f"Note: {remark}")
    if report.problems:
        raise CheckpointError(f"{directory} is not sound: {report.problems[0]}")
