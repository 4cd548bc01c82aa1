"""Reports: to a file and back, what of two differs, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepzig.errors import ReportError
from deepzig.evaluate.figures import Figure
from deepzig.evaluate.reports import Difference, Kind, Report, compare, in_short, new_report, read_report

MACHINE = {"cpu": "one", "cores": 2, "memory_gb": 8.0, "system": "Linux", "threads": 2, "kernels": {"linear": "amx"}}


def report(*figures: Figure, kind: Kind = "deepzig bench", **changed: Any) -> Report:
    given = {"machine": MACHINE, "model": {"name": "m"}, "settings": {"repetitions": 2}, "beside": {}, **changed}
    return new_report(kind, figures=list(figures), **given)


def rates(name: str, *samples: float) -> Figure:
    return Figure(name, "tok/s", list(samples), details={"depth": 4})


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    made = report(rates("pp8", 1.0, 3.0), Figure("first token", "s", [0.5]), is_complete=False)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(made.to_json()), encoding="utf-8")
    assert read_report(path) == made
    shown = json.loads(path.read_text(encoding="utf-8"))
    assert shown["figures"][0]["mean"] == 2.0 and shown["figures"][0]["samples"] == [1.0, 3.0]
    assert shown["figures"][1]["p99"] == 0.5 and shown["figures"][1]["deviation"] is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"\xff", b'{"kind": "deepzig bench"}', b'{"kind": "another", "figures": []}',
        b'{"deepzig": "\xff"}', b'{"machine": {"kernels": ' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=r"a\.json is not what"):
        read_report(path)


@pytest.mark.parametrize("samples", ["[]", '["fast"]', "[1e999]"])
def test_samples_that_are_none_are_refused(tmp_path: Path, samples: str) -> None:
    content = json.dumps(report(rates("pp8", 1.0)).to_json()).replace('"samples": [1.0]', f'"samples": {samples}')
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match="is not what"):
        read_report(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_only_what_both_have_is_compared() -> None:
    found = compare(report(rates("pp8", 1.0), rates("tg8", 2.0)), report(rates("tg8", 3.0), rates("tg9", 4.0)))
    ((before, after),) = [(each.before.name, each.after.mean) for each in found.compared]
    assert (before, after) == ("tg8", 3.0)
    assert (found.only_before, found.only_after) == (["pp8"], ["tg9"])
    assert found.differences == [] and found.is_same_machine


def test_differences_are_listed() -> None:
    before = report(rates("pp8", 1.0))
    other = {**MACHINE, "threads": 1, "extra": 1}
    after = report(rates("pp8", 1.0), machine=other, model={"name": "n"}, settings={})
    assert compare(before, after).differences == [
        Difference("machine", "threads", 2, 1),
        Difference("machine", "extra", None, 1),
        Difference("model", "name", "m", "n"),
        Difference("settings", "repetitions", 2, None),
    ]
    assert compare(before, after).is_same_machine  # other settings of it, but the same one
    assert not compare(before, report(rates("pp8", 1.0), machine={**MACHINE, "cpu": "two"})).is_same_machine


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ReportError, match="nothing was measured in both"):
        compare(report(rates("pp8", 1.0)), report(rates("pp9", 1.0)))
    with pytest.raises(ReportError, match="two of a kind"):
        compare(report(rates("pp8", 1.0)), report(rates("pp8", 1.0), kind="deepzig bench serve"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (dict.fromkeys("abcde", "amx") | {"f": "avx2"}, "5 amx, 1 avx2"),
        ({name: ["a", {}] for name in "abcdef"}, "6 ['a', {}]"),
        ({"DEEPZIG_ISA": "avx2", "b": 3}, "DEEPZIG_ISA avx2, b 3"),
        ({}, "none"),
        (None, "none"),
        ([1, 2], "1, 2"),
        (2.5, "2.5"),
    ],
)
def test_values_in_short(value: Any, shown: str) -> None:
    assert in_short(value) == shown
