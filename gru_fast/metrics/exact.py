"""Means that can be compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterable


def exact_mean(values: Iterable[float]) -> float:
    """The float64 nearest to the mean of float64 numbers, at least one.

    Means of equal numbers are equal, however many they are and in whatever order: a rank is by numbers, and not by how
    a sum was rounded. Equal to numpy's to its last bits.

    >>> exact_mean([4.6051702] * 5) == exact_mean([4.6051702] * 6) == 4.6051702
    True
    """
    return statistics.mean(map(float, values))
