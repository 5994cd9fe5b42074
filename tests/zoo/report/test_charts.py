"""Axes have few and round numbers, whatever is drawn."""

import pytest

from zoo.report.charts import Line, Range, lines, ticks


@pytest.mark.parametrize(("low", "high", "wanted"), [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (12, 70, [20, 30, 40, 50, 60, 70]), (0.0, 34.7, [0, 10, 20, 30]),
    (0.0, 0.358, [0, 0.1, 0.2, 0.3]), (1, 3, [1, 1.5, 2, 2.5, 3]), (4, 4, [4]),
    (0, 120_000, [0, 20_000, 40_000, 60_000, 80_000, 100_000, 120_000]),
    (0.0, 1.05e-9, [0, 2e-10, 4e-10, 6e-10, 8e-10, 1e-9]),
])  # fmt: skip
def test_ticks(low, high, wanted):
    assert ticks(Range(low, high, "")) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_there_are_always_a_few_and_all_lie_on_the_axis():
    for k in range(1, 400):
        axis = Range(0.013 * k, 0.013 * k + 1.017**k, "")
        found = ticks(axis)
        assert 2 <= len(found) <= 7, axis
        assert axis.low - 1e-9 <= found[0], axis
        assert found[-1] <= axis.high * (1 + 1e-9), axis


def test_one_point_is_a_dot_to_be_seen():
    axes = Range(0, 1, "x"), Range(0, 1, "y")
    drawn = lines([Line("one", [(0.2, None), (0.5, 0.25)]), Line("two", [(0, 0), (1, 1)])], *axes)
    assert drawn.count("<circle") == 1
    assert 'class="dot line c0" cx="246.0" cy="169.5" r="4"' in drawn
    assert drawn.count('class="line c') == 1
