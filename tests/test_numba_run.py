"""deepzig on Numba alone, as on a CPU or system without compiled kernels: golden logits, in a process of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepzig._kernels import REGISTRY, _numba_threads
from deepzig._kernels._numba_jit import jit

GOLDEN = Path(__file__).parent / "golden"

# Prints, for each case, how far the logits are from HF's: fed whole, in chunks, absorbed, and of the MTP layer.
PROGRAM = """
import sys
import numpy as np
import deepzig
from deepzig._kernels import ACTIVE

assert set(ACTIVE.values()) == {"numba"}, ACTIVE
for folder in sys.argv[1:]:
    with np.load(folder + "/expected.npz") as arrays:
        expected = dict(arrays)
    ids = expected["ids"].tolist()
    llm = deepzig.load(folder, n_threads=2)
    found = [llm.logits(ids), llm.logits(ids, chunk_size=7), llm.logits(ids, attention="absorbed")]
    print(*(abs(logits - expected["logits"]).max() for logits in found))
    print(abs(llm.mtp_logits(ids) - expected["mtp_logits"]).max())
"""


@pytest.mark.timeout(300)  # on a fresh machine everything compiles first: some 12 s of one core
def test_logits_on_numba() -> None:
    """bf16 and fp8 weights, every kernel but those for other formats."""
    environment = os.environ | {"DEEPZIG_KERNEL": ",".join(f"{stem}:numba" for stem in REGISTRY)}
    environment.pop("DEEPZIG_ISA", None)
    folders = [str(GOLDEN / name) for name in ("v3_classic", "v3_fp8")]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *folders],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    distances = [float(number) for number in run.stdout.split()]
    assert len(distances) == 8
    assert max(distances) < 2e-4, run.stdout


def test_nothing_is_kept_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a service without a home, on a package that belongs to root."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    @jit(error_model="numpy")
    def quotient(a: float, b: float) -> float:
        return a / b

    assert quotient(1.0, 0.0) == float("inf")


def test_all_rows_are_computed_when_the_main_thread_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors take nothing any more, but a thread of the program may still generate."""
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    monkeypatch.setattr(_numba_threads, "_executor", lambda _n_threads: closed)
    found: list[range] = []
    _numba_threads.run_rows(lambda first, stop: found.append(range(first, stop)), 10, 4)
    assert sorted(row for rows in found for row in rows) == list(range(10))
