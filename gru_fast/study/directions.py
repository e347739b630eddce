"""Which way GRU moves each score, here and in the paper: signs can be compared where values cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from gru_fast.study import paper
from gru_fast.study.render import Cell, Column, Table
from gru_fast.study.results import COMPARISON, GRU, PLAIN, StudyResults
from gru_fast.study.statistics import MISSING, Pair, oriented, pairs, places

_Place = tuple[str, str]  # backbone and split


def directions(results: StudyResults) -> Table:
    """A row a method, split and score: the mean change by GRU here, and that of each model and split of the paper."""
    places_of_paper = list(_places(results))
    rows: list[list[Cell]] = []
    for (title, split), members in _by_method(results).items():
        for heading, name in ((results.retention, "retention"), (results.removal, "removal")):
            printed = [_in_paper(title, heading, place) for place in places_of_paper]
            if all(change is None for change in printed):
                continue
            values = [cast("float", getattr(pair, name)) for pair in members if pair.outcome != MISSING]
            own = math.fsum(values) / len(values) if values else None
            rows.append(
                [
                    title,
                    split,
                    heading,
                    _signed(own, heading),
                    f"{sum(value > 0 for value in values)} of {len(values)}",
                    *(_signed(change, heading) for change in printed),
                    _agreeing(own, printed),
                ]
            )
    columns = [Column("Method", number=False), Column("Split", number=False), Column("Score", number=False)]
    columns += [Column("here, mean"), Column("better in")]
    columns += [Column(f"paper: {backbone} {split}") for backbone, split in places_of_paper]
    return Table(
        "directions",
        f"{results.benchmark.upper()}: which way GRU moves each score, here and in the paper",
        "The score with GRU minus that without, turned so that + is better; better in: of the pairs here. Paper: from "
        "its Table 2, whose models, rows and settings are others, so that signs alone can be compared. Same sign: "
        "columns of the paper that go the way of the mean here; a change of 0 goes no way.",
        [*columns, Column("same sign")],
        rows if places_of_paper else [],
    )


def _by_method(results: StudyResults) -> dict[_Place, list[Pair]]:
    found: dict[_Place, list[Pair]] = {}
    for pair in pairs(results):
        found.setdefault((pair.method, pair.split), []).append(pair)
    return found


def _places(results: StudyResults) -> Iterator[_Place]:
    """Backbones and splits of the paper's comparison that have both scores of the study's plane."""
    found = (
        (entry.backbone, entry.split)
        for entry in paper.entries()
        if entry.use == COMPARISON and entry.split and {results.retention, results.removal} <= entry.scores.keys()
    )
    yield from dict.fromkeys(found)


def _in_paper(method: str, heading: str, place: _Place) -> float | None:
    """The paper's change by GRU; None where it has not both values."""
    scores = {
        entry.variant: float(entry.scores[heading])
        for entry in paper.entries()
        if (entry.use, entry.method) == (COMPARISON, method) and (entry.backbone, entry.split) == place
    }
    if not {PLAIN, GRU} <= scores.keys():
        return None
    return oriented(heading, scores[GRU]) - oriented(heading, scores[PLAIN])


def _agreeing(own: float | None, printed: list[float | None]) -> str:
    known = [change for change in printed if change is not None]
    return f"{sum(change * (own or 0.0) > 0 for change in known)} of {len(known)}"


def _signed(change: float | None, heading: str) -> str | None:
    return None if change is None else f"{change:+.{places(heading)}f}"
