"""Means with 95 % intervals, against the printed table of Student's t."""

from __future__ import annotations

import pytest

from prunegym.agents.comparison.results import Interval, interval

# Two-sided 95 % quantiles of Student's t as printed in tables, by degrees of freedom.
TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.mark.parametrize("degrees", TABLE)
def test_half_width_uses_the_quantile_of_the_table(degrees):
    values = [float(value) for value in range(degrees + 1)]
    mean = degrees / 2
    deviation = (sum((value - mean) ** 2 for value in values) / degrees) ** 0.5
    result = interval(values)
    assert result.mean == mean
    assert result.count == degrees + 1
    assert result.half_width == pytest.approx(TABLE[degrees] * deviation / (degrees + 1) ** 0.5, rel=3e-4)


def test_a_single_value_has_no_interval():
    assert interval([0.25]) == Interval(0.25, None, 1)


def test_equal_values_have_no_width():
    assert interval([0.5, 0.5, 0.5]).half_width == 0
