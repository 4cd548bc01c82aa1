"""How far a long command is, on stderr: a bar on a terminal, else a plain line now and then; nothing with -q.

Called by the commands; calls `messages`.
"""

import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from deepzig.cli.messages import is_quiet, note

LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.1
ALIKE = ("B", "tokens")  # units that take about equal time
NARROWEST_BAR = 4  # columns


class Update(Protocol):
    """Reports progress; called often, shows something now and then."""

    def __call__(self, done: int, total: int, *details: str) -> None:
        """`done` of `total` units, and further texts, the most important first."""


def byte_progress(title: str) -> AbstractContextManager[Update]:
    """Progress of work counted in bytes: shows bytes, MB/s and the time left."""
    return _progress(title, "B")


def token_progress(title: str) -> AbstractContextManager[Update]:
    """Progress of work counted in tokens."""
    return _progress(title, "tokens")


def timed_progress(title: str, unit: str) -> AbstractContextManager[Update]:
    """Progress of timed work: only on a terminal, and drawn between units, so that it takes no time from them."""
    if is_quiet() or not sys.stderr.isatty():
        return nullcontext(lambda done, total, *details: None)
    return _bar(title, unit, between_updates=False)


def _progress(title: str, unit: str) -> AbstractContextManager[Update]:
    if is_quiet():
        return nullcontext(lambda done, total, *details: None)
    return _bar(title, unit) if sys.stderr.isatty() else _lines(title, unit)


@contextmanager
def _bar(title: str, unit: str, between_updates: bool = True) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True)
    console.width -= len("^C")  # which terminals show at the end: within the line, so that it is overwritten

    class Counts(ProgressColumn):
        """One column, since rich makes all columns narrower alike until none can be read."""

        def render(self, task: Task) -> Text:
            if not task.total:
                return Text("")
            counts = counted(int(task.completed), int(task.total), unit, task.speed or 0)
            room = console.width - len(title) - NARROWEST_BAR - 2
            return Text(fitting([*counts, *task.fields["details"]], room))

    columns = (TextColumn(title), BarColumn(bar_width=None), Counts(Column(no_wrap=True)))
    with Progress(*columns, console=console, expand=True, auto_refresh=between_updates) as bars:
        task = bars.add_task(title, total=None, details=())
        drawn = 0.0

        def update(done: int, total: int, *details: str) -> None:
            nonlocal drawn
            now = time.perf_counter()
            if done == total or now - drawn >= DRAW_EVERY_S:
                drawn = now
                bars.update(task, completed=done, total=total, details=details, refresh=not between_updates)

        yield update


@contextmanager
def _lines(title: str, unit: str) -> Iterator[Update]:
    started = shown = time.perf_counter()
    first: int | None = None  # what was done before, which must not make a resumed run look faster
    ended = False

    def update(done: int, total: int, *details: str) -> None:
        nonlocal shown, first, ended
        now = time.perf_counter()
        first = done if first is None else first
        if ended or (done < total and now - shown < LINE_EVERY_S):
            return
        shown, ended = now, done >= total
        counts = counted(done, total, unit, (done - first) / max(now - started, 1e-9))
        note(f"{title}: {100 * done // max(total, 1)} %, {', '.join([*counts, *details])}")

    yield update


def counted(done: int, total: int, unit: str, rate: float) -> list[str]:
    """How much of how much; for units alike, also units a second, and the time left if it is known and not zero."""
    if unit not in ALIKE:
        return [amount(done, total, unit)]
    left = [f"{clock((total - done) / rate)} left"] if rate > 0 and done < total else []
    return [amount(done, total, unit), *left, f"{scaled(rate, unit)}/s"]


def amount(done: int, total: int, unit: str) -> str:
    """Two numbers in the unit of the second: 0.29/1.06 GB."""
    if unit != "B":
        return f"{done}/{total} {unit}"
    number, prefixed = scaled(total, unit).split()
    return f"{done * float(number) / max(total, 1):.{2 if float(number) < 10 else 1}f}/{number} {prefixed}"


def fitting(parts: Sequence[str], room: int) -> str:
    """The first of `parts`, as many as `room` characters hold."""
    lengths = itertools.accumulate(len(part) + 1 for part in parts)
    return " ".join(part for part, length in zip(parts, lengths, strict=True) if length <= room + 1)


def clock(seconds: float) -> str:
    """Minutes and seconds, 1:05, or hours too, 2:01:05."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def plural(number: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def scaled(number: float, unit: str) -> str:
    """A number with three digits and, for bytes and without a unit, a decimal prefix: 12.6 MB, 12.6 M."""
    if unit not in ("B", ""):
        return f"{number:.0f} {unit}"
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} T{unit}"
