"""Figures: statistics against known values, and what two of them allow to say."""

import math
import statistics

import pytest

from deepzig.evaluate.figures import Figure, ratio


def rates(*samples: float, name: str = "tg64") -> Figure:
    return Figure(name, "tok/s", list(samples))


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    figure = rates(2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0)
    assert figure.mean == 5.0
    assert figure.deviation == pytest.approx(math.sqrt(32 / 7))
    assert figure.relative_error == pytest.approx(math.sqrt(32 / 7) / math.sqrt(8) / 5)
    assert figure.summary() == {"mean": 5.0, "deviation": figure.deviation}


def test_one_sample_has_no_deviation() -> None:
    assert rates(3.0).deviation is None
    assert rates(3.0).relative_error is None


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.96), (1.0, 5.0), (0.3, 2.2)])
def test_quantiles_lie_on_the_line_between_samples(share: float, value: float) -> None:
    assert Figure("gap", "s", [5.0, 1.0, 4.0, 2.0, 3.0]).quantile(share) == pytest.approx(value)
    assert Figure("gap", "s", [2.5]).quantile(share) == 2.5


def test_quantiles_of_many_agree_with_the_standard_library() -> None:
    samples = [float((7 * i) % 101) for i in range(101)]
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    summary = Figure("gap", "s", samples).summary()
    assert (summary["p50"], summary["p99"]) == (pytest.approx(cuts[49]), pytest.approx(cuts[98]))


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [-1.0], [1e308, 1e308], [5e-324]])
def test_what_is_no_figure_is_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="no samples"):
        rates(*samples)


def test_ratio_and_its_uncertainty() -> None:
    before, after = rates(99.0, 100.0, 101.0), rates(118.0, 120.0, 122.0)
    found = ratio(before, after)
    assert found is not None
    assert found.value == pytest.approx(1.2)
    errors = 1 / math.sqrt(3) / 100, 2 / math.sqrt(3) / 120
    assert found.uncertainty == pytest.approx(1.2 * math.hypot(*errors) * 4.30)  # two degrees of freedom
    assert found.verdict == "faster"


def test_the_smaller_number_of_samples_decides() -> None:
    few, many = rates(99.0, 101.0), rates(*[100.0, 102.0] * 20)
    found = ratio(few, many)
    assert found is not None and found.uncertainty is not None and found.uncertainty > 0.12  # Student's t is 12.71
    assert found.verdict == "no clear difference"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (rates(100.0, 100.1, 100.2), rates(90.0, 90.1, 90.2), "slower"),
        (rates(90.0, 100.0, 110.0), rates(95.0, 105.0, 115.0), "no clear difference"),
        (rates(100.0), rates(120.0, 121.0), "not known"),
        (Figure("first", "s", [1.0, 1.01, 1.02]), Figure("first", "s", [0.5, 0.51, 0.52]), "faster"),
        (Figure("first", "s", [1.0, 1.01, 1.02]), Figure("first", "s", [1.5, 1.51, 1.52]), "slower"),
        (Figure("gap", "s", [1.0, 1.01, 1.02], False), Figure("gap", "s", [1.5, 1.51, 1.52], False), "not known"),
    ],
)
def test_verdicts(before: Figure, after: Figure, verdict: str) -> None:
    found = ratio(before, after)
    assert found is not None and found.verdict == verdict


def test_nothing_is_compared_with_nothing() -> None:
    assert ratio(Figure("gap", "s", [0.0, 0.0]), Figure("gap", "s", [0.1])) is None
