"""What a model gives away in several tries: leak@k of sampled answers, and how sure the mean over rows is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gru_fast.data.ngrams import words_of

Floats = NDArray[np.float64]
RESAMPLES = 2000


def leak_at_k(scores: Sequence[float], k: int) -> float:
    """The expected greatest of k scores drawn without replacement from the n of one row: leak@k (arXiv 2511.04934).

    sum_i s_(i) * C(i-1, k-1) / C(n, k) over the scores in ascending order: unbiased for the greatest of k new samples,
    and of less variance than taking the first k. k = n is the greatest, k = 1 the mean.

    Raises:
        ValueError: fewer than k scores.

    >>> leak_at_k([0.0, 1.0, 0.0, 0.0], 2)
    0.5
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k: expected a number from 1 to the {n} samples, got {k}")
    ordered = sorted(scores)
    total = math.comb(n, k)
    return math.fsum(score * (math.comb(i, k - 1) / total) for i, score in enumerate(ordered))


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap's interval of the mean over rows: rows are drawn anew, as many as there are.

    The same for the same values and seed. One row: the interval is that row.
    """
    rows: Floats = np.asarray(values, dtype=np.float64)
    if not len(rows):
        raise ValueError("values: expected at least one row, got none")
    drawn = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    low, high = np.quantile(rows[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_answer(reference: str, generation: str) -> float:
    """1 where the words of the reference stand in the generation in one piece, whatever case and signs; else 0.

    >>> exact_answer("Rome, Italy", "She was born in rome - Italy."), exact_answer("Rome", "Romeo")
    (1.0, 0.0)
    """
    wanted, written = (" ".join(words_of(text)) for text in (reference, generation))
    return float(bool(wanted) and f" {wanted} " in f" {written} ")


def mean(values: Sequence[float]) -> float:
    """The mean, exactly rounded."""
    return math.fsum(values) / len(values)
