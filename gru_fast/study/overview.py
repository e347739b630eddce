"""Tables of a study as a whole: what GRU changes, every pair, every run."""

from __future__ import annotations

from gru_fast.study.render import Cell, Column, Span, Table, score_column, setting, without_empty
from gru_fast.study.results import CLIPPED, PLAIN, StudyResults
from gru_fast.study.statistics import (
    BOTH,
    INTERVALS,
    MISSING,
    NONE,
    REMOVAL,
    RETENTION,
    RULE,
    Change,
    Group,
    group,
    groups,
    pairs,
    places,
)


def statistics(results: StudyResults) -> Table:
    """Mean changes by GRU and counts of pairs, by method and split, and of all."""
    found = groups(results)
    whole = [group([pair for each in found for pair in each.pairs], "all")] if found else []
    of_split = [
        group([pair for each in found if each.split == split for pair in each.pairs], "all methods", split)
        for split in (results.splits if len(results.splits) > 1 else ())
    ]
    columns = [
        Column("Method", number=False),
        Column("Split", number=False),
        Column(f"change of {results.retention}"),
        Column(f"change of {results.removal}"),
        *map(Column, ("pairs", "both improved", f"{results.retention} only", f"{results.removal} only", "none")),
        *map(Column, ("with a tie", "missing")),
    ]
    rows = [_of_group(results, each) for each in (*found, *(each for each in of_split if each.pairs), *whole)]
    return Table("statistics", "What GRU changes, over all pairs", f"{RULE} {INTERVALS}", columns, rows)


def every_pair(results: StudyResults) -> Table:
    """One pair a row."""
    names = {BOTH: BOTH, RETENTION: f"{results.retention} only", REMOVAL: f"{results.removal} only", NONE: NONE}
    heads = ("Method", "Split", "Seed", f"change of {results.retention}", f"change of {results.removal}", "improved")
    columns = [Column(head, number=head not in {"Method", "Split", "improved"}) for head in heads]
    rows: list[list[Cell]] = [
        [
            pair.method,
            pair.split,
            pair.seed,
            _signed(pair.retention, results.retention),
            _signed(pair.removal, results.removal),
            f"missing: {pair.missing}" if pair.missing else names[pair.outcome] + (", a tie" if pair.is_tie else ""),
        ]
        for pair in pairs(results)
    ]
    return Table("pairs", "Every pair", RULE, columns, rows)


def every_run(results: StudyResults) -> Table:
    """Every run of the recipe, whatever has come of it."""
    shown = list(dict.fromkeys(heading for run in results.runs for heading in run.scores))
    first = ("Run", "Method", "Split", "Seed", "γ", "τ", "strength", "State")
    columns = [Column(name, number=name not in {"Run", "Method", "Split", "State"}) for name in first]
    columns += [*map(score_column, shown), Column("Why", number=False)]
    rows: list[list[Cell]] = []
    for run in results.runs:
        tau = setting(run.tau) if run.variant not in {"", PLAIN} else None
        scores: list[Cell] = [_fixed(run.scores.get(heading), places(heading)) for heading in shown]
        log = f"log: {run.log}" if run.is_lacking and run.log else ""
        why = "; ".join(filter(None, (run.reason, log)))
        how: list[Cell] = [run.gamma if run.variant not in {"", PLAIN, CLIPPED} else None, tau, run.strength]
        rows.append([run.name, run.label, run.split, run.seed, *how, run.state, *scores, why])
    note = "Every run of the recipe, whatever has come of it; of those that failed, why, and the log."
    return without_empty(Table("runs", "All runs", note, columns, rows))


def _of_group(results: StudyResults, each: Group) -> list[Cell]:
    return [
        each.method,
        each.split or "all",
        _span(each.retention, results.retention),
        _span(each.removal, results.removal),
        len(each.pairs),
        *(each.count(outcome) for outcome in (BOTH, RETENTION, REMOVAL, NONE)),
        each.ties,
        each.count(MISSING),
    ]


def _span(change: Change, heading: str) -> Span:
    return Span(change.mean, change.low, change.high, places(heading))


def _signed(value: float | None, heading: str) -> str | None:
    return None if value is None else f"{value:+.{places(heading)}f}"


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
