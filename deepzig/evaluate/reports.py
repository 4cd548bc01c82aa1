"""Report: a run of `deepzig bench`, as a file keeps it, and the comparison of two.

Made and read by the command line. Calls `figures` and `machine`. Knows nothing of how things are measured.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec

from deepzig.errors import ReportError
from deepzig.evaluate.figures import Figure, Ratio, ratio
from deepzig.evaluate.machine import now

MACHINE_KEYS = ("cpu", "cores", "memory_gb", "system")  # keys of `machine` that identify it
SPELT_OUT = 5  # names with values
Kind = Literal["deepzig bench", "deepzig bench serve"]


@dataclass(frozen=True)
class Report:
    """What was measured, on what, and how."""

    kind: Kind
    deepzig: str  # version
    date: str
    machine: dict[str, Any]  # the machine that measured; for a server's bench the client's
    model: dict[str, Any]
    settings: dict[str, Any]
    figures: list[Figure]
    beside: dict[str, Any]  # other results: the memory's speed; requests and errors
    is_complete: bool = True  # False: interrupted

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: every sample, and what follows from them."""
        return {**asdict(self), "figures": [{**asdict(figure), **figure.summary()} for figure in self.figures]}


def new_report(kind: Kind, **contents: Any) -> Report:
    """A report of this version, now."""
    return Report(kind, version("deepzig"), now(), **contents)


def read_report(path: Path) -> Report:
    """The report of a file. Raises ReportError if it is no such report."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ReportError(f"{path} cannot be read ({error.strerror}); give a file of `deepzig bench --json`") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is not what `deepzig bench --json` prints: {error}") from error


@dataclass(frozen=True)
class Compared:
    """A figure that both reports have."""

    before: Figure
    after: Figure
    ratio: Ratio | None


@dataclass(frozen=True)
class Difference:
    """Something other than a figure that differs; None where a report lacks it."""

    of: str  # "machine", "model", "settings" or "deepzig"
    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Comparison:
    """Two reports beside each other."""

    compared: list[Compared]
    only_before: list[str]  # names of figures
    only_after: list[str]
    differences: list[Difference]

    @property
    def is_same_machine(self) -> bool:
        """Whether both ran on the same machine, as far as one can tell."""
        return not any(each.of == "machine" and each.name in MACHINE_KEYS for each in self.differences)


def compare(before: Report, after: Report) -> Comparison:
    """Compare two reports. Raises ReportError if they are of different kinds, or have no figure in common."""
    if before.kind != after.kind:
        raise ReportError(f"one is of `{before.kind}`, the other of `{after.kind}`; compare two of a kind")
    old = {figure.name: figure for figure in before.figures}
    new = {figure.name: figure for figure in after.figures}
    shared = [name for name in old if name in new]
    if not shared:
        raise ReportError(
            f"nothing was measured in both ({_listed(old)}; {_listed(new)}); take the same --prompt, --decode, --depth"
        )
    return Comparison(
        compared=[Compared(old[name], new[name], ratio(old[name], new[name])) for name in shared],
        only_before=[name for name in old if name not in new],
        only_after=[name for name in new if name not in old],
        differences=list(_differences(before, after)),
    )


def in_short(value: Any) -> str:
    """A value of a report for people: of a mapping only the values, and how often each occurs."""
    if isinstance(value, Mapping) and len(value) > SPELT_OUT:
        return ", ".join(f"{count} {shown}" for shown, count in Counter(map(str, value.values())).most_common())
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown}" for name, shown in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _differences(before: Report, after: Report) -> Iterator[Difference]:
    if before.deepzig != after.deepzig:
        yield Difference("deepzig", "version", before.deepzig, after.deepzig)
    for part in ("machine", "model", "settings"):
        old, new = getattr(before, part), getattr(after, part)
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                yield Difference(part, name, old.get(name), new.get(name))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"
