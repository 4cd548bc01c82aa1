"""Runs `decode` on checkpoints, each as a process of its own: formats, precisions, instruction sets, BLAS, stories.

Called by `__main__` and `peers`; calls `synthetic` for the checkpoints. Knows what to compare, not how to measure it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.decode import CONTEXTS, PROMPTS, Result
from bench.kernel_cases import is_fast_apart
from bench.synthetic import Synthetic, ensure
from deepzig._kernels import ACTIVE
from deepzig._kernels._isa import ISA_NAMES
from deepzig._kernels._pick import missing_flags
from deepzig.checkpoint.model_names import BUNDLED

STORIES_PROMPT = 512
STORIES_CONTEXT = 64
LOWER_ISAS = ("avx512", "avx2")  # of which the prompt speed is stated too


@dataclass(frozen=True)
class ModelRun:
    """A process and what it measured."""

    variant: str  # "exact", "fast", or what was forced by an environment variable
    result: Result


def run_synthetic(formats: tuple[str, ...], n_layers: int, directory: Path, n_threads: int) -> Iterator[ModelRun]:
    """Every format in both precisions, then the first one through BLAS and with lower instruction sets."""
    for name in formats:
        folder = ensure(Synthetic(name, n_layers), directory)
        yield ModelRun("exact", decode_process(folder, n_threads, PROMPTS, CONTEXTS))
        if is_fast_apart("linear"):
            yield ModelRun("fast", decode_process(folder, n_threads, PROMPTS, (), "--precision", "fast"))
    folder = ensure(Synthetic(formats[0], n_layers), directory)
    for variable, value in _forced_ways():
        result = decode_process(folder, n_threads, PROMPTS[:1], (), environment={variable: value})
        yield ModelRun(f"{variable}={value}", result)


def run_stories(n_threads: int) -> ModelRun:
    """The bundled model: so small that the cost of each call shows."""
    return ModelRun("exact", decode_process(BUNDLED["stories"], n_threads, (STORIES_PROMPT,), (STORIES_CONTEXT,)))


def _forced_ways() -> Iterator[tuple[str, str]]:
    """Environment variables and values, for ways of `linear` that are below the picked one and run here."""
    if ACTIVE["linear"] != "blas":
        yield "DEEPZIG_KERNEL", "linear:blas,experts:blas"
    picked = ACTIVE["linear"].removeprefix("cython/")
    for isa in LOWER_ISAS:
        if picked in ISA_NAMES and ISA_NAMES.index(isa) < ISA_NAMES.index(picked) and not missing_flags(isa):
            yield "DEEPZIG_ISA", isa


def decode_process(
    folder: Path,
    n_threads: int,
    prompts: tuple[int, ...],
    contexts: tuple[int, ...],
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """`bench.decode` in a process of its own; no contexts: prompts only."""
    command = [sys.executable, "-m", "bench.decode", str(folder), "--threads", str(n_threads), *options]
    command += [f"--prompt={n}" for n in prompts] + [f"--context={n}" for n in contexts or (0,)]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, check=True)
    return Result.from_json(json.loads(done.stdout.splitlines()[-1]))
