"""The table of attacks: what share of the way back to the original each got, plain and with GRU, also at equal
retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gru_fast.study.render import Cell, Column, Score, Table, without_empty
from gru_fast.study.results import COMPARISON, FURTHER, UNLEARNED, StudyResults, StudyRun, variant_name
from gru_fast.study.statistics import finite


def attacks(results: StudyResults, split: str) -> Table:
    """A row a method and variant, a column an attack; after those on the runs, those on mixtures at each share."""
    runs = list(results.find(kind=UNLEARNED, use=(COMPARISON, FURTHER), split=split))
    asked = list(dict.fromkeys((each.at, each.attack) for run in runs for each in run.attacked))
    asked.sort(key=lambda each: each[0] is not None)  # the runs themselves first
    rows: list[list[Cell]] = []
    for title in dict.fromkeys(run.title for run in runs if run.attacked):
        of: dict[str, list[StudyRun]] = {}
        for run in runs:
            if run.title == title:
                of.setdefault(run.variant, []).append(run)
        scores = _least_marked([[_score(members, *each) for each in asked] for members in of.values()])
        for (variant, members), own in zip(of.items(), scores, strict=True):
            attacked = [run for run in members if run.attacked]
            if attacked:
                rows.append([title, variant_name(variant), *own, f"{len(attacked)} of {len(members)}"])
    if rows:
        rows.append(["Retrained", "", *_of_retrained(runs, asked), ""])
    return without_empty(
        Table(
            f"attacks-{split}",
            f"{results.benchmark.upper()} {split}: does it come back?",
            "The greatest share of the way from the unlearned model back to the original that an attack got, over all "
            "its settings and the scores that say what is known; 0 nothing, 1 all. At a share: of the mixture that "
            f"keeps it of the original's {results.retention} (UWC). Retrained: what the same attack does to the model "
            "that never knew, of its own way. Bold: the lowest mean of a method. Mean ± standard deviation over "
            "seeds; n: runs that were attacked.",
            [
                Column("Method", number=False),
                Column("Variant", number=False),
                *(Column(attack + ("" if at is None else f" at {at:.0%}")) for at, attack in asked),
                Column("n"),
            ],
            rows,
        )
    )


def _score(runs: Sequence[StudyRun], at: float | None, attack: str) -> Score:
    found = (each.back for run in runs for each in run.attacked if (each.at, each.attack) == (at, attack))
    return Score(tuple(value for value in map(finite, found) if value is not None), 2)


def _least_marked(rows: Sequence[Sequence[Score]]) -> list[list[Score]]:
    """The same, the lowest mean of each column marked where there are several and one is lower than another."""
    made = [list(row) for row in rows]
    for i, column in enumerate(zip(*rows, strict=True)):
        known = [score.mean for score in column if score.mean is not None]
        if len(known) > 1 and min(known) < max(known):
            for row in made:
                row[i] = replace(row[i], is_best=row[i].mean == min(known))
    return made


def _of_retrained(runs: Sequence[StudyRun], asked: Sequence[tuple[float | None, str]]) -> list[Score]:
    """What each attack does to the retrained models: a seed's is the same beside every run, and counts once."""
    found = []
    for at, attack in asked:
        by_seed = {
            run.seed: each.retained_back
            for run in runs
            for each in run.attacked
            if (each.at, each.attack) == (at, attack) and finite(each.retained_back) is not None
        }
        found.append(Score(tuple(value for value in by_seed.values() if value is not None), 2))
    return found
