"""How long a conversion takes beside a copy of the same file, and how much memory: `python -m bench.convert SRC`.

The copy and the conversion write to the same disk, each with the source out of the page cache and all that is written
brought to the disk before the clock stops. The conversion runs as a process of its own, `deepzig quantize`, whose
anonymous memory is read while it runs. Calls nothing else of the bench but `machine`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.machine import describe
from deepzig.threads import available_threads

SAMPLE_EVERY_S = 0.05
FORMATS = ("int8", "int4", "fp8")


@dataclass(frozen=True)
class Conversion:
    """One run of `deepzig quantize`."""

    format: str
    seconds: float
    copy_seconds: float  # of the source, just before
    peak_anonymous_mb: float  # greatest RssAnon of /proc/PID/status
    source_bytes: int
    written_bytes: int


def measure(source: Path, directory: Path, wanted: str, n_threads: int) -> Conversion:
    """Copy, then convert, in a new folder `directory`, which is removed."""
    weights = sorted(source.glob("*.safetensors"))
    copied, converted = directory / "copied", directory / "converted"
    directory.mkdir()
    try:
        copied.mkdir()
        _forget(weights)
        copy_seconds = _timed(lambda: _copy(weights, copied))
        shutil.rmtree(copied)
        _forget(weights)
        peaks: list[int] = []
        command = [sys.executable, "-m", "deepzig", "quantize", str(source), str(converted), "--format", wanted]
        seconds = _timed(lambda: peaks.append(_peak_of([*command, "--threads", str(n_threads)])))
        written = sum(path.stat().st_size for path in converted.iterdir())
    finally:
        shutil.rmtree(directory)
    source_bytes = sum(path.stat().st_size for path in weights)
    return Conversion(wanted, seconds, copy_seconds, peaks[0] / 1e6, source_bytes, written)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _forget(paths: Sequence[Path]) -> None:
    """Out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy(paths: Sequence[Path], directory: Path) -> None:
    for path in paths:
        shutil.copyfile(path, directory / path.name)
        with (directory / path.name).open("rb") as file:
            os.fsync(file.fileno())


def _peak_of(command: Sequence[str]) -> int:
    """Run it; greatest anonymous memory in bytes, sampled. Raises CalledProcessError."""
    peak = 0
    with subprocess.Popen(command) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text(encoding="ascii").splitlines()
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))])
            time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "formats", multiple=True, default=("int8",), show_default=True, type=click.Choice(FORMATS))
@click.option("--threads", type=click.IntRange(min=1), help="default: one for each core")
def main(source: Path, formats: tuple[str, ...], threads: int | None) -> None:
    """Convert the checkpoint SOURCE beside itself; a line for each format, then one of JSON."""
    n_threads = threads or available_threads()
    runs = []
    for wanted in formats:
        run = measure(source, source.parent / f"{source.name}.bench", wanted, n_threads)
        runs.append(run)
        click.echo(
            f"{wanted}: {run.source_bytes / 1e9:.1f} GB to {run.written_bytes / 1e9:.1f} GB in {run.seconds:.1f} s, "
            f"a copy {run.copy_seconds:.1f} s, anonymous memory {run.peak_anonymous_mb:.0f} MB"
        )
    click.echo(json.dumps({"machine": describe(n_threads), "runs": [asdict(run) for run in runs]}))


if __name__ == "__main__":
    main(prog_name="python -m bench.convert")
