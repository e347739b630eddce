"""A quick look at a model: every third row of each set, and how far its scores may be from those of all rows.

One for all benchmarks: each says by :func:`option` that it has it, scores one of :func:`step` rows, and puts into its
summary the :func:`intervals` of the scores that `gru-fast report` shows, by their headings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 3  # of so many rows one: TOFU has 20 of each author, one after the other
SUFFIX = "-quick"  # of the name of an evaluation, and so of its folder
Floats = NDArray[np.float64]


def option() -> Any:
    """The field of an evaluation's options."""
    text = "every third row of those, in a folder of its own: for a look, with intervals, not for a table"
    return field(default=False, metadata={"help": text})


def step(quick: bool) -> int:
    """Of so many rows one is scored."""
    return STEP if quick else 1


def indices(count: int, quick: bool) -> list[int]:
    """The rows that are scored, of so many."""
    return list(range(0, count, step(quick)))


def setting(quick: bool) -> dict[str, bool]:
    """Among an evaluation's settings; nothing where all rows are scored, as in those from before there was a choice."""
    return {"quick": True} if quick else {}


def intervals(
    sets: Mapping[str, Floats],
    scores: Callable[[Mapping[str, Floats]], Mapping[str, float | None]],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """The two ends of the percentile bootstrap's interval of each score.

    The rows of each set are drawn anew, as many as there are. The same for the same rows and seed. Scores
    that are not known (None) are left out.

    Args:
        sets: of each row what a score needs of it, (rows, ...).
        scores: of sets, some of whose rows stand there several times and some not at all.
        level: share of the resamples that an interval holds.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = {name: rows[generator.integers(len(rows), size=len(rows))] for name, rows in sets.items()}
        for name, value in scores(drawn).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile(values, ends).tolist() for name, values in found.items()}


def means(rows: Floats) -> list[float | None]:
    """Of each column its mean over the rows that have it, not NaN; None where none has."""
    counts = (~np.isnan(rows)).sum(axis=0)
    sums = np.nansum(rows, axis=0)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def table(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """(rows, names): the scores of rows by name, NaN where a row has none of that name."""
    return np.array([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)


def report(summary: Mapping[str, Any]) -> list[str]:
    """What a summary's reader is told of it: nothing of one of all rows."""
    found = summary.get("intervals")
    if not found:
        return []
    lines = ["Quick: every third row of each set. 95% of bootstrap samples:"]
    return lines + [f"  {heading:<22}{low:>12.4f} to {high:.4f}" for heading, (low, high) in found.items()]
