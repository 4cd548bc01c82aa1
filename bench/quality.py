"""What each weight format costs in quality and gains in speed: `python -m bench.quality MODEL`.

Converts a model, as a rule bf16, to every format with the converter of `deepzig quantize`, and compares each with the
original on texts: the table of docs/quantising.md. Calls `checkpoint.convert`, `evaluate` and, for the speed, `model`.
Formats that are calibrated are so on the fables, so that among the tables that of the fables flatters them.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

import deepzig
from bench.decode import stored_weights
from bench.machine import describe
from bench.model import decode_process
from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.schemes import CHANNEL
from deepzig.cli.tables import Table
from deepzig.config import ModelConfig
from deepzig.engine.llm import LLM
from deepzig.errors import DeepzigError
from deepzig.evaluate.calibration import calibrate
from deepzig.evaluate.perplexity import Evaluation, evaluate
from deepzig.threads import available_threads

FABLES = Path(__file__).with_name("fables.txt")  # retold for this project: no model has seen them
PROMPT, CONTEXT = 64, 64  # tokens, of the decode speed
ALL_INT4 = (("*", "int4"),)

CALIBRATED = ", calibrated"
SOURCE = "original"

FORMATS: dict[str, Recipe] = {
    "fp8, 128 x 128": Recipe("fp8"),
    "int8, a row": Recipe("int8", CHANNEL),
    "int8, g128": Recipe("int8"),
    "int4, g128": Recipe("int4", 128, include=ALL_INT4),
    "int4, g64": Recipe("int4", 64, include=ALL_INT4),
    "int4, g32": Recipe("int4", 32, include=ALL_INT4),
    "int4, g64" + CALIBRATED: Recipe("int4", 64, include=ALL_INT4),
    "int4 mix": Recipe("int4"),
    "int4 mix" + CALIBRATED: Recipe("int4"),
}


@dataclass(frozen=True)
class Quality:
    """One format of the model."""

    name: str
    bits_per_weight: float  # of all matrices that are stored, scales included
    file_bytes: int  # of all safetensors
    evaluations: dict[str, Evaluation]  # by the text's name
    decode_tokens_per_s: float | None


def run(source: Path, texts: dict[str, str], directory: Path, n_threads: int, with_speed: bool) -> Iterator[Quality]:
    """SOURCE, then each of FORMATS; the converted models lie in `directory`."""
    reference = deepzig.load(source, n_threads=n_threads)
    yield _measure(SOURCE, source, texts, reference, n_threads, with_speed)
    importance = calibrate(reference, FABLES.read_text(encoding="utf-8")).importance
    for name, recipe in FORMATS.items():
        folder = directory / name.replace(", ", "-").replace(" ", "-")
        options = Options(recipe, importance=importance if name.endswith(CALIBRATED) else {})
        convert(source, folder, options, n_threads=n_threads)
        yield _measure(name, folder, texts, reference, n_threads, with_speed)


def _measure(
    name: str, folder: Path, texts: dict[str, str], reference: LLM, n_threads: int, with_speed: bool
) -> Quality:
    llm = deepzig.load(folder, n_threads=n_threads)
    evaluations = {title: evaluate(llm, text, reference=reference) for title, text in texts.items()}
    speed = None
    if with_speed:
        result = decode_process(folder, n_threads, (PROMPT,), (CONTEXT,))
        speed = result.decoding[0].tokens_per_s
    file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Quality(name, _bits_per_weight(folder), file_bytes, evaluations, speed)


def _bits_per_weight(folder: Path) -> float:
    stored = stored_weights(load_weights(open_checkpoint(folder), ModelConfig.from_directory(folder)).linear)
    values = sum(weight.shape[0] * weight.shape[1] for weight in stored)
    return 8 * sum(weight.nbytes for weight in stored) / values


def table(title: str, results: Sequence[Quality]) -> Table:
    """One text: the first row is what the others are compared with."""
    first = results[0].evaluations[title]
    rows = []
    for result in results:
        found = result.evaluations[title]
        divergence = found.divergence
        assert divergence is not None
        rows.append(
            [
                result.name,
                f"{result.bits_per_weight:.2f}",
                f"{result.file_bytes / 1e6:.1f}",
                f"{found.perplexity:.4f}",
                f"{100 * (found.perplexity / first.perplexity - 1):+.3f} %",
                f"{divergence.mean_kl:.6f}",
                f"{divergence.p99_kl:.5f}",
                f"{100 * divergence.same_top:.2f} %",
                f"{result.decode_tokens_per_s:.0f}" if result.decode_tokens_per_s else "",
            ]
        )
    head = ["format", "bits", "MB", "perplexity", "change", "mean KL", "99 % KL", "same top", "decode tok/s"]
    return Table(f"{title}, {first.tokens} tokens", head, rows)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", "texts", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="UTF-8, beside the fables of the bench; as often as needed.")  # fmt: skip
@click.option("--speed/--no-speed", default=True, show_default=True, help="Time decoding as well.")
@click.option("--threads", type=click.IntRange(min=1), help="default: one for each core")
def main(model: Path, texts: tuple[Path, ...], speed: bool, threads: int | None) -> None:
    """Compare all formats of MODEL with it; Markdown, and one line of JSON last."""
    n_threads = threads or available_threads()
    contents = {path.name: path.read_text(encoding="utf-8") for path in (*texts, FABLES)}
    results = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            for result in run(model, contents, Path(directory), n_threads, speed):
                click.echo(result.name, err=True)
                results.append(result)
    except DeepzigError as error:
        raise click.ClickException(str(error)) from error
    machine = describe(n_threads)
    click.echo(f"Measured {machine['date']} with `python -m bench.quality`: {machine['cpu']}, {n_threads} threads.")
    for title in contents:
        click.echo(f"\n{table(title, results).markdown()}")
    click.echo(json.dumps({"machine": machine, "results": [asdict(result) for result in results]}))


if __name__ == "__main__":
    main(prog_name="python -m bench.quality")
