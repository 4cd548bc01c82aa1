"""`deepzig kernels`: the table, its JSON, and forcing what cannot be."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess

from click.testing import Result

from deepzig import _kernels
from deepzig._kernels._isa import ISA_NAMES
from deepzig.evaluate.machine import cpu_name
from tests.cli.terminal import Terminal

Run = Callable[..., Result]


def test_table_has_a_line_for_each_kernel(run: Run) -> None:
    result = run("kernels")
    assert result.exit_code == 0
    cpu, isa, blank, header, *lines = result.stdout.splitlines()
    assert cpu.split(maxsplit=1) == ["CPU", cpu_name()] and blank == ""
    assert isa == f"highest instruction set {_kernels.highest_isa() or 'none compiled'}"
    assert header.split() == ["kernel", "runs", "prompts", "available", "forced", "by"]
    assert [line.split()[:2] for line in lines] == [[row.stem, row.runs] for row in _kernels.table()]


def test_a_narrow_terminal_cuts_no_word() -> None:
    row = _kernels.table()[-1]
    with Terminal("kernels", columns=40, rows=300) as terminal:
        assert terminal.exit_code() == 0
    last = " ".join(terminal.text.rpartition("kernel ")[2].split())
    assert last == f"{row.stem} runs {row.runs} available {' '.join(row.available)} forced by -"


def test_json_has_what_the_table_has(run: Run) -> None:
    shown = json.loads(run("kernels", "--json").stdout)
    assert {row["kernel"]: row["runs"] for row in shown["kernels"]} == _kernels.ACTIVE
    assert all(row["runs"] in row["available"] for row in shown["kernels"])
    assert shown["problem"] == _kernels.build_report().problem
    assert (shown["cpu"], shown["highest_isa"]) == (cpu_name(), _kernels.highest_isa())


def test_forcing_an_implementation_is_said(run_process: Callable[..., CompletedProcess[str]]) -> None:
    stem = next(iter(_kernels.ACTIVE))
    done = run_process("kernels", "--json", env={"DEEPZIG_KERNEL": f"{stem}:reference"})
    (row,) = [row for row in json.loads(done.stdout)["kernels"] if row["kernel"] == stem]
    assert (row["runs"], row["forced_by"]) == ("reference", "DEEPZIG_KERNEL")


def test_forcing_the_impossible_is_one_line(run_process: Callable[..., CompletedProcess[str]]) -> None:
    done = run_process("kernels", env={"DEEPZIG_ISA": "avx1024"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: DEEPZIG_ISA='avx1024'")
    assert done.stderr.count("\n") == 1


def test_help_names_every_isa(run: Run) -> None:
    text = run("kernels", "--help").stdout
    assert all(name in text for name in ISA_NAMES)
