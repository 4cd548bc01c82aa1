"""`deepzig verify`: hashes, headers and values of a checkpoint folder, and whether its texts can be used. Calls
`checkpoint.verify`, and what reads tokenizer, template and defaults when a model is loaded."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepzig.cli.command import command
from deepzig.cli.completion import complete_model
from deepzig.cli.messages import note
from deepzig.cli.options import hub_options, json_option, model_folder
from deepzig.cli.progress import byte_progress, plural, scaled
from deepzig.errors import CheckpointError, ConfigError, TokenizerError

if TYPE_CHECKING:
    from deepzig.checkpoint.verify import Report

SHOWN = 20  # problems


@command()
@click.argument("model", shell_complete=complete_model)
@json_option
@hub_options
def verify(model: str, as_json: bool) -> None:
    """Check a checkpoint, byte by byte.

    MODEL is a folder or a model's name. Files that `deepzig quantize` wrote are compared with the hashes in their
    manifest. In every checkpoint, headers, names, shapes, values, tokenizer and template are checked.

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
            check_small_files(directory, report)
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


def check_small_files(directory: Path, report: "Report") -> None:
    """Add what would stop a load after the weights: tokenizer, chat template, defaults."""
    from deepzig.config import ModelConfig
    from deepzig.engine.defaults import GenerationDefaults
    from deepzig.text.chat import ChatTemplate
    from deepzig.text.tokenizer import load_tokenizer

    def read_tokenizer() -> None:
        if load_tokenizer(directory) is None:
            report.remarks.append("no tokenizer: prompts must be token ids")

    readers: tuple[Callable[[], object], ...] = (
        read_tokenizer,
        lambda: ChatTemplate.from_directory(directory),
        lambda: GenerationDefaults.from_directory(directory, ModelConfig.from_directory(directory)),
    )
    for read in readers:
        try:
            read()
        except (TokenizerError, ConfigError) as error:
            if str(error) not in report.problems:  # one file may stop several
                report.problems.append(str(error))
