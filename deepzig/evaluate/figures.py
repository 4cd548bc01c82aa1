"""Figures: what was measured several times, its mean and spread, and how two figures compare.

Made by `speed` and `http_load`, kept by `reports`, shown by the command line. Knows nothing of what was measured.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Student's t for a 95 % interval, by degrees of freedom from 1; for more of them it is below the last.
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)

MIN_SAMPLE, MAX_SAMPLE = 1e-30, 1e30  # range of samples other than 0, so that sums, squares and ratios are finite

Unit = Literal["tok/s", "s"]


@dataclass(frozen=True)
class Figure:
    """Samples of one quantity, at least one."""

    name: str
    unit: Unit
    samples: list[float]
    is_independent: bool = True  # whether the samples tell how sure the mean is: successive ones of one run do not
    details: Mapping[str, str | int | float] = field(default_factory=dict)  # what exactly was measured

    def __post_init__(self) -> None:
        if not self.samples or not all(not sample or MIN_SAMPLE < sample < MAX_SAMPLE for sample in self.samples):
            raise ValueError(f"{self.name!r} has no samples, or one that is no speed and no time")

    @property
    def mean(self) -> float:
        """Mean of the samples."""
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample, with n - 1; None if there is one sample only."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else None

    @property
    def relative_error(self) -> float | None:
        """Standard error / mean; None where it is not known."""
        if self.deviation is None or not self.is_independent or not self.mean:
            return None
        return self.deviation / math.sqrt(len(self.samples)) / self.mean

    def summary(self) -> dict[str, float | None]:
        """Mean and spread of the samples; for times, which are many and uneven, quantiles too."""
        quantiles = {"p50": self.quantile(0.5), "p99": self.quantile(0.99)} if self.unit == "s" else {}
        return {"mean": self.mean, "deviation": self.deviation, **quantiles}

    def quantile(self, share: float) -> float:
        """The value that this share of the samples does not exceed; between two samples, interpolated."""
        import numpy as np

        return float(np.quantile(self.samples, share))


@dataclass(frozen=True)
class Ratio:
    """The mean of a figure / the mean of the same figure in an earlier run."""

    value: float
    uncertainty: float | None  # half of the 95 % interval; None: too few samples to know
    higher_is_faster: bool

    @property
    def verdict(self) -> Literal["faster", "slower", "no clear difference", "not known"]:
        """What may be said: nothing if the interval contains 1."""
        if self.uncertainty is None:
            return "not known"
        if abs(self.value - 1) <= self.uncertainty:
            return "no clear difference"
        return "faster" if (self.value > 1) == self.higher_is_faster else "slower"


def ratio(before: Figure, after: Figure) -> Ratio | None:
    """after / before; None if the mean before is 0.

    The relative errors of both means add up as squares. Student's t is taken for the smaller number of samples, which
    is at least as careful as Welch's degrees of freedom.
    """
    if not before.mean:
        return None
    value = after.mean / before.mean
    errors = before.relative_error, after.relative_error
    uncertainty = None
    if errors[0] is not None and errors[1] is not None:
        freedom = min(len(before.samples), len(after.samples)) - 1
        uncertainty = value * math.hypot(errors[0], errors[1]) * STUDENT_T[min(freedom, len(STUDENT_T)) - 1]
    return Ratio(value, uncertainty, higher_is_faster=before.unit == "tok/s")
