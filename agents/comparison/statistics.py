"""Means with 95 % intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95 % Student-t interval.

    Attributes:
        mean: The mean.
        half_width: Half of the interval's width, mean +- half_width; None for a single value.
        count: Number of values.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end; None for a single value."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end; None for a single value."""
        return None if self.half_width is None else self.mean + self.half_width


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with its Student-t interval (Student 1908).

    mean +- t * s / sqrt(n), with s the standard deviation (n - 1) and t the quantile for n - 1 degrees of freedom.

    Args:
        values: At least one number.
        confidence: Between 0 and 1.

    Example:
        >>> result = interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> result.mean, round(result.half_width, 4)
        (3.0, 1.9632)
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

    numbers = np.asarray(values, dtype=np.float64)
    count, mean = len(numbers), float(numbers.mean())
    if count < 2:
        return Interval(mean, None, count)
    quantile = float(t.ppf((1 + confidence) / 2, count - 1))
    return Interval(mean, quantile * float(numbers.std(ddof=1)) / count**0.5, count)
