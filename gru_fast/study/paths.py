"""Runs along their way: why one removes less than another at the end.

A run that moves the weights less far has removed less, and kept more, whatever way it goes. So runs are compared where
the weights have moved equally far, and where equally much is kept; what is left then is the way itself. A run's path
begins at the original and goes through its evaluations (``along`` of a recipe), in straight lines between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gru_fast.study.render import Cell, Column, Span, Table
from gru_fast.study.results import (
    COMPARISON,
    FURTHER,
    ORIGINAL,
    PLAIN,
    UNLEARNED,
    StudyResults,
    StudyRun,
    variant_name,
)
from gru_fast.study.statistics import finite, mean, oriented, places


@dataclass(frozen=True)
class Place:
    """Where a run is on its way.

    moved: |w - w0| / |w0|; None where it is not known.
    retention, removal: turned so that + is better.
    """

    moved: float | None
    retention: float
    removal: float


@dataclass(frozen=True)
class Compared:
    """A run against the plain one of its method, split and seed; a change is None where it is not known.

    Args:
        moved: how far it has moved, as a multiple of the plain run's way.
        end: changes of retention and removal at the end.
        at_distance: the same where the one that moved farther had moved as far as the other at its end.
        at_retention: the change of removal where the one that kept less had kept as much as the other at its end; None
            where neither gave up anything.
    """

    moved: float | None
    end: tuple[float, float]
    at_distance: tuple[float, float] | None
    at_retention: float | None


def path(results: StudyResults, run: StudyRun) -> list[Place]:
    """From the original through the evaluations of a run to its end; empty where it has none on its way."""
    start = next(results.find(kind=ORIGINAL, split=run.split, seed=run.seed), None)
    start = start or next(results.find(kind=ORIGINAL, split=run.split, seed=None), None)
    if start is None or len(run.points) < 2 or not run.is_done:
        return []
    found = [(0.0, start.scores), *((finite(point.moved), point.scores) for point in run.points)]
    known = [
        (moved, finite(scores.get(results.retention)), finite(scores.get(results.removal))) for moved, scores in found
    ]
    return [
        Place(moved, oriented(results.retention, kept), oriented(results.removal, removed))
        for moved, kept, removed in known
        if kept is not None and removed is not None
    ]


def compared(plain: Sequence[Place], other: Sequence[Place]) -> Compared:
    """``other`` against ``plain``; each path from the original to the end of a run."""
    first, second = plain[-1], other[-1]
    end = (second.retention - first.retention, second.removal - first.removal)
    ratio = at_distance = None
    if first.moved and second.moved is not None:
        ratio = second.moved / first.moved
        at = [_where(way, "moved", min(first.moved, second.moved)) for way in (plain, other)]
        if at[0] is not None and at[1] is not None:
            at_distance = (at[1].retention - at[0].retention, at[1].removal - at[0].removal)
    at_retention = None
    level = max(first.retention, second.retention)
    if level < plain[0].retention:
        at = [_where(way, "retention", level) for way in (plain, other)]
        if at[0] is not None and at[1] is not None:
            at_retention = at[1].removal - at[0].removal
    return Compared(ratio, end, at_distance, at_retention)


def paths(results: StudyResults, split: str) -> Table:
    """What each way to rectify changes at the end, where the weights have moved equally far, where as much is kept."""
    rows: list[list[Cell]] = []
    for title, variant, found in _by_variant(results, split):
        spans = (
            (results.removal, [each.end[1] for each in found]),
            (results.retention, [each.end[0] for each in found]),
            (results.removal, [each.at_distance[1] for each in found if each.at_distance]),
            (results.retention, [each.at_distance[0] for each in found if each.at_distance]),
            (results.removal, [each.at_retention for each in found if each.at_retention is not None]),
        )
        moved = mean(each.moved for each in found)
        cells = [Span(mean(values), None, None, places(heading)) for heading, values in spans]
        rows.append([title, variant_name(variant), None if moved is None else round(moved, 3), *cells, len(found)])
    kept, removed = results.retention, results.removal
    return Table(
        f"paths-{split}",
        f"{results.benchmark.upper()} {split}: changes at the end, after an equal way, and where equally much is kept",
        "Each run against the plain one of its method and seed; changes are turned so that + is better, means over the "
        "n seeds that were evaluated along the way. Moved: how far the weights are from the original, as a multiple of "
        "the plain run's. Equal way: where the run that moved farther had moved as far as the other. "
        f"Equal {kept}: where the run that kept less had kept as much as the other at its end. Between evaluations in "
        "straight lines.",
        [
            Column("Method", number=False), Column("Variant", number=False), Column("moved"),
            Column(f"{removed}, end"), Column(f"{kept}, end"),
            Column(f"{removed}, equal way"), Column(f"{kept}, equal way"), Column(f"{removed}, equal {kept}"),
            Column("n"),
        ],
        rows,
    )  # fmt: skip


def _by_variant(results: StudyResults, split: str) -> Iterator[tuple[str, str, list[Compared]]]:
    ways: dict[tuple[str, str], dict[int | None, list[Place]]] = {}
    for run in results.find(kind=UNLEARNED, use=(COMPARISON, FURTHER), split=split):
        way = path(results, run)
        if way:
            ways.setdefault((run.title, run.variant), {})[run.seed] = way
    for (title, variant), by_seed in ways.items():
        plain = ways.get((title, PLAIN), {})
        found = [compared(plain[seed], way) for seed, way in by_seed.items() if seed in plain]
        if variant != PLAIN and found:
            yield title, variant, found


def _where(way: Sequence[Place], name: str, level: float) -> Place | None:
    """The first place on a way that has come to ``level``: as far moved, or down to as little kept."""
    for before, after in pairwise(way):
        start, end = getattr(before, name), getattr(after, name)
        if start is None or end is None:
            return None
        if min(start, end) <= level <= max(start, end) and start != end:
            share = (level - start) / (end - start)
            return Place(
                None,
                before.retention + share * (after.retention - before.retention),
                before.removal + share * (after.removal - before.removal),
            )
    return way[-1] if getattr(way[-1], name) == level else None
