"""Tables in the shape of the paper's, and those that it has not: task vectors.

A cell is the mean over the seeds that have the score; n is how many of the recipe's runs have scores. A table that the
recipe has no runs for is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from gru_fast.study import attacked, overview, paper
from gru_fast.study.arguments import flags
from gru_fast.study.directions import directions
from gru_fast.study.paths import paths
from gru_fast.study.render import Cell, Column, Score, Table, last_if_none, score_column, setting, without_empty
from gru_fast.study.results import (
    ABLATION,
    CALIBRATION,
    CLIPPED,
    COMPARISON,
    FURTHER,
    GAMMA_AND_ROWS,
    GRU,
    ORIGINAL,
    PLAIN,
    RETAIN,
    RETRAINED,
    SENSITIVITY,
    UNLEARNED,
    VECTOR,
    StudyResults,
    StudyRun,
    variant_name,
)
from gru_fast.study.statistics import by_method, finite, oriented, places, score_of

_HEADINGS = {
    "wmdp": ("WMDP Bio", "WMDP Cyber", "MMLU"),
    "own": ("Prob forget", "ES forget", "ROUGE-L forget", "Prob retain", "ROUGE-L retain"),
    "muse": ("VerbMem forget", "KnowMem forget", "KnowMem retain", "PrivLeak"),
}
_NUMBERS = {"tofu": "Tables 1 and 2", "wmdp": "Tables 3 and 5", "muse": "Table 4"}
_MEANS = "Mean ± standard deviation over seeds; n: runs with scores, of those in the recipe."


def tables(results: StudyResults) -> list[Table]:
    """All that there is anything for, in the order of the paper."""
    per_split = (
        comparison, further, paths, over_tau, over_gamma, over_gamma_and_rows, ablation, over_retain, calibration,
        attacked.attacks, vectors,
    )  # fmt: skip
    found = [make(results, split) for make in per_split for split in results.splits]
    whole = (directions, overview.statistics, overview.every_pair, overview.every_run)
    return [table for table in [*found, *(make(results) for make in whole)] if table.rows]


def headings(results: StudyResults) -> Sequence[str]:
    """The scores of the main table."""
    return _HEADINGS.get(results.benchmark, (results.removal, results.retention))


# ---- the paper's -----------------------------------------------------------------------------------------------------


def comparison(results: StudyResults, split: str) -> Table:
    """The original, the retrained model, each method plain and with GRU, task vectors at each strength."""
    shown = headings(results)
    rows: list[_Row] = []
    for kind in (ORIGINAL, RETRAINED):
        runs = list(results.find(kind=kind, split=split))
        if runs:
            known = _paper(results, COMPARISON, split, runs)
            rows.append((runs[0].title, "", _scores(runs, shown), known, _count(runs)))
    unlearned = by_method(results.find(kind=UNLEARNED, use=COMPARISON, split=split))
    for title, runs in unlearned.items():
        rows += _variants(results, split, title, runs, (PLAIN, GRU), shown)
    strengths = list(_strengths(results, split))
    for title, strength, runs in strengths:
        known = _paper(results, COMPARISON, split, runs)
        rows.append((title, f"strength {strength:g}", _scores(runs, shown), known, _count(runs)))
    there = {*unlearned, *(title for title, *_ in strengths)}
    for entry in paper.not_stated(COMPARISON, results.backbone, split):
        if entry.method in there:
            how = ", ".join(filter(None, (variant_name(entry.variant) if entry.variant else "", entry.lacks)))
            place = max(i for i, row in enumerate(rows) if row[0] == entry.method) + 1
            rows.insert(place, (entry.method, how, _scores([], shown), entry, None))
    if not there:
        rows = []
    numbers = _NUMBERS.get(results.benchmark)
    shape = f"In the shape of the paper's {numbers}. " if numbers else ""
    return _with_paper(
        results,
        f"comparison-{split}",
        f"{_named(results)} {split}: every method plain and with GRU",
        f"{shape}Bold: the better mean of plain and w/ GRU. {_MEANS}",
        (Column("Method", number=False), Column("Variant", number=False)),
        shown,
        rows,
    )


def further(results: StudyResults, split: str) -> Table:
    """Plain, with GRU, and the recipe's other ways to rectify; of the seeds that have these."""
    shown = headings(results)
    rows: list[_Row] = []
    own = list(results.find(kind=UNLEARNED, use=FURTHER, split=split))
    there = {(run.title, run.seed) for run in own}
    usual = [run for run in results.find(kind=UNLEARNED, use=COMPARISON, split=split) if (run.title, run.seed) in there]
    for title, runs in by_method([*usual, *own]).items():
        rows += _variants(results, split, title, runs, list(dict.fromkeys(run.variant for run in runs)), shown)
    options = results.recipe.get("variants", {}).get("options", {})
    said = "; ".join(f"{name}: {' '.join(flags(given))}" for name, given in options.items())
    return _with_paper(
        results,
        f"variants-{split}",
        f"{_named(results)} {split}: rectified in other ways",
        f"Bold: the best mean of a method. {said}. {_MEANS}",
        (Column("Method", number=False), Column("Variant", number=False)),
        shown,
        rows,
    )


def over_tau(results: StudyResults, split: str) -> Table:
    """Both scores over tau, at each gamma that has several."""
    return _sensitivity(results, split, "tau", "gamma", "Table 6")


def over_gamma(results: StudyResults, split: str) -> Table:
    """Both scores over gamma, at each tau that has several."""
    return _sensitivity(results, split, "gamma", "tau", "Table 7")


def ablation(results: StudyResults, split: str) -> Table:
    """Plain, clipped to tau, with GRU."""
    shown = (results.removal, results.retention)
    rows: list[_Row] = []
    for title, runs in by_method(results.find(kind=UNLEARNED, use=ABLATION, split=split)).items():
        rows += _variants(results, split, title, runs, (PLAIN, CLIPPED, GRU), shown, ABLATION)
    return _with_paper(
        results,
        f"ablation-{split}",
        f"{_named(results)} {split}: is it the clipping?",
        f"In the shape of the paper's Table 8. Bold: the best mean of a method. {_MEANS}",
        (Column("Method", number=False), Column("Variant", number=False)),
        shown,
        rows,
    )


def calibration(results: StudyResults, split: str) -> Table:
    """Removal at equal retention: each run mixed with the original until it keeps a share of it (UWC)."""
    chosen = [run for run in results.find(kind=UNLEARNED, split=split) if run.calibrated]
    targets = sorted({each.target for run in chosen for each in run.calibrated})
    shown = (results.removal, results.retention)
    rows: list[list[Cell]] = []
    beside: list[paper.Entry | None] = []
    for title, runs in by_method(results.find(kind=UNLEARNED, use=(COMPARISON, FURTHER), split=split)).items():
        for variant in dict.fromkeys(run.variant for run in runs) if targets else ():
            members = [run for run in runs if run.variant == variant and (run.calibrated or run.is_lacking)]
            row: list[Cell] = [title, variant_name(variant)]
            for target in targets:
                found = [each for run in members for each in run.calibrated if run.is_done and each.target == target]
                known = _paper(results, CALIBRATION, split, members, target=target)
                beside.append(known)
                values = [_known(each.scores.get(heading) for each in found) for heading in shown]
                row += [Score(part, places(heading)) for part, heading in zip(values, shown, strict=True)]
                row += [
                    Score(_known(each.alpha for each in found), 2),
                    *(_printed(known, heading) for heading in shown),
                ]
            if members:
                rows.append([*row, _count([run for run in members if run.calibrated], len(members))])
    columns = [Column("Method", number=False), Column("Variant", number=False)]
    for target in targets:
        columns += [Column(f"{heading} at {target:.0%}") for heading in shown]
        columns += [Column(f"α at {target:.0%}"), *(Column(f"paper: {heading} at {target:.0%}") for heading in shown)]
    return without_empty(
        Table(
            f"calibration-{split}",
            f"{_named(results)} {split}: {results.removal} at equal {results.retention} (UWC)",
            "In the shape of the paper's Tables 9 and 10. Each run is mixed with the original model, α of it and 1 − α "
            f"of the original, until it keeps the share of the original's {results.retention}. {_MEANS} "
            + _remark(results, beside),
            [*columns, Column("n")],
            _with_best(rows, [2 + 5 * i for i in range(len(targets))], results.removal),
        )
    )


# ---- what the paper has not ------------------------------------------------------------------------------------------


def vectors(results: StudyResults, split: str) -> Table:
    """TV and TRU over strengths."""
    shown = headings(results)
    rows = [
        [title, strength, *_scores(runs, shown), _count(runs)] for title, strength, runs in _strengths(results, split)
    ]
    columns = [Column("Method", number=False), Column("strength"), *map(score_column, shown), Column("n")]
    title = f"{_named(results)} {split}: task vectors over strengths, without retain data"
    return Table(f"vectors-{split}", title, _MEANS, columns, rows)


def over_retain(results: StudyResults, split: str) -> Table:
    """GRU over the rows to keep a batch has, and with an average before the first step."""
    shown = headings(results)
    rows: list[list[Cell]] = []
    for title, runs in by_method(results.find(kind=UNLEARNED, use=RETAIN, split=split)).items():
        found: dict[tuple[int, int], list[StudyRun]] = {}
        for run in runs:
            found.setdefault((run.retain_rows or 0, run.warm_up or 0), []).append(run)
        marked = _best([_scores(members, shown) for members in found.values()], shown)
        rows += [
            [title, *how, *scores, _count(members)]
            for (how, members), scores in zip(found.items(), marked, strict=True)
        ]
    columns = [Column("Method", number=False), Column("rows to keep"), Column("warm-up"), *map(score_column, shown)]
    return Table(
        f"over-retain-{split}",
        f"{_named(results)} {split}: with GRU, over how good the average is",
        "Rows to keep a batch on each device; batches of them in the average before the first step. Bold: the best "
        f"mean of a method. {_MEANS}",
        [*columns, Column("n")],
        rows,
    )


def over_gamma_and_rows(results: StudyResults, split: str) -> Table:
    """GRU over gamma and the rows to keep that a batch has."""
    found: dict[tuple[str, int], list[StudyRun]] = {}
    for run in results.find(kind=UNLEARNED, use=GAMMA_AND_ROWS, split=split):
        found.setdefault((run.title, run.retain_rows or 0), []).append(run)
    gammas = sorted({run.gamma for runs in found.values() for run in runs if run.gamma is not None})
    rows: list[list[Cell]] = []
    for (title, size), runs in found.items():
        for heading in (results.removal, results.retention):
            scores = [
                Score(_known(score_of(run, heading) for run in runs if run.gamma == gamma), places(heading))
                for gamma in gammas
            ]
            rows.append([title, size, heading, *scores, _count(runs)])
    columns = [Column("Method", number=False), Column("rows to keep"), Column("Score", number=False)]
    return Table(
        f"over-gamma-and-rows-{split}",
        f"{_named(results)} {split}: with GRU, over gamma and the rows to keep a batch has",
        f"Rows to keep a batch on each device. {_MEANS}",
        [*columns, *(Column(f"{_GREEK['gamma']} {gamma:g}") for gamma in gammas), Column("n")],
        rows,
    )


# ---- parts -----------------------------------------------------------------------------------------------------------

_Row = tuple[str, str, Sequence[Score], paper.Entry | None, Cell]
_SETTINGS = {GRU: ("gamma", "tau"), CLIPPED: ("tau",)}  # of a variant: what the paper's rows must share


def _paper(
    results: StudyResults, use: str, split: str, runs: Sequence[StudyRun], **more: paper.Setting
) -> paper.Entry | None:
    """What the paper has for runs of one method, variant and setting; nothing where their settings differ."""
    if not runs:
        return None
    names = ("strength",) if runs[0].kind == VECTOR else _SETTINGS.get(runs[0].variant, ())
    if len({tuple(getattr(run, name) for name in names) for run in runs}) > 1:
        return None
    own = {name: getattr(runs[0], name) for name in names}
    title, variant = runs[0].title, runs[0].variant
    return paper.find(use, results.backbone, split, title, variant, **own, **_corpus(results), **more)


def _corpus(results: StudyResults) -> dict[str, paper.Setting]:
    """Of MUSE, whose two corpora have splits of the same names."""
    from gru_fast.benchmarks import muse

    return {"corpus": muse.corpus_of(results.recipe.get("data") or muse.HUB)} if results.benchmark == "muse" else {}


def _printed(entry: paper.Entry | None, heading: str) -> str | None:
    return None if entry is None else entry.shown(heading)


def _remark(results: StudyResults, beside: Iterable[paper.Entry | None]) -> str:
    return paper.remark(results.backbone, [entry for entry in beside if entry])


def _variants(
    results: StudyResults,
    split: str,
    title: str,
    runs: Sequence[StudyRun],
    variants: Sequence[str],
    shown: Sequence[str],
    use: str = COMPARISON,
) -> list[_Row]:
    """A row a variant, the best mean of each score marked."""
    members_of = {variant: [run for run in runs if run.variant == variant] for variant in variants}
    filled = {variant: members for variant, members in members_of.items() if members}
    marked = _best([_scores(members, shown) for members in filled.values()], shown)
    return [
        (title, variant_name(variant), scores, _paper(results, use, split, members), _count(members))
        for (variant, members), scores in zip(filled.items(), marked, strict=True)
    ]


def _sensitivity(results: StudyResults, split: str, name: str, fixed: str, number: str) -> Table:
    """Rows: method, value of ``fixed``, score; columns: values of ``name``. What is fixed has several of the other."""
    runs = list(results.find(kind=UNLEARNED, use=SENSITIVITY, split=split, variant=GRU))
    found: dict[tuple[str, float | None], list[StudyRun]] = {}
    for run in runs:
        found.setdefault((run.title, getattr(run, fixed)), []).append(run)
    varied = {key: runs for key, runs in found.items() if len({getattr(run, name) for run in runs}) > 1}
    values = sorted({getattr(run, name) for runs in varied.values() for run in runs}, key=last_if_none)
    rows: list[list[Cell]] = []
    beside: list[paper.Entry | None] = []
    for (title, held), members in varied.items():
        at = {value: [run for run in members if getattr(run, name) == value] for value in values}
        known = [_paper(results, SENSITIVITY, split, at[value]) for value in values]
        beside += known
        for heading in (results.removal, results.retention):
            scores = [Score(_known(score_of(run, heading) for run in at[value]), places(heading)) for value in values]
            rows.append([title, setting(held), heading, *scores, _count(members)])
            if any(known):
                printed = (_printed(entry, heading) for entry in known)
                rows.append([title, setting(held), f"{heading}, paper", *printed, None])
    return Table(
        f"over-{name}-{split}",
        f"{_named(results)} {split}: with GRU, over {name} at fixed {fixed}",
        f"In the shape of the paper's {number}. {_MEANS} {_remark(results, beside)}",
        [
            Column("Method", number=False),
            Column(_GREEK[fixed]),
            Column("Score", number=False),
            *(Column(f"{_GREEK[name]} {setting(value)}") for value in values),
            Column("n"),
        ],
        rows,
    )


_GREEK = {"tau": "τ", "gamma": "γ"}


def _with_paper(
    results: StudyResults,
    name: str,
    title: str,
    note: str,
    first: Sequence[Column],
    shown: Sequence[str],
    rows: Sequence[_Row],
) -> Table:
    """A table whose scores have the paper's beside them, where it has any."""
    from_paper = [heading for heading in shown if any(known and heading in known.scores for *_, known, _ in rows)]
    columns = [*first]
    for heading in shown:
        columns += [score_column(heading), *([Column(f"paper: {heading}")] if heading in from_paper else [])]
    made: list[list[Cell]] = []
    for method, how, scores, known, count in rows:
        cells: list[Cell] = [method, how]
        for heading, score in zip(shown, scores, strict=True):
            cells += [score, *([_printed(known, heading)] if heading in from_paper else [])]
        made.append([*cells, count])
    note = f"{note} {_remark(results, (known for *_, known, _ in rows))}"
    return Table(name, title, note, [*columns, Column("n")], made)


def _with_best(rows: Sequence[Sequence[Cell]], columns: Iterable[int], heading: str) -> list[list[Cell]]:
    """Marks in each column the better of the rows of a method."""
    made = [list(row) for row in rows]
    for column in columns:
        for title in dict.fromkeys(row[0] for row in made):
            chosen = [row for row in made if row[0] == title]
            scores = [[cell] for row in chosen if isinstance(cell := row[column], Score)]
            for row, (score,) in zip(chosen, _best(scores, [heading]), strict=True):
                row[column] = score
    return made


def _best(rows: Sequence[Sequence[Score]], shown: Sequence[str]) -> list[list[Score]]:
    """Marks the best mean of each score, where there are several and one is better than another."""
    made = [list(row) for row in rows]
    for i, heading in enumerate(shown):
        means = [None if row[i].mean is None else oriented(heading, row[i].mean or 0.0) for row in made]
        known = [mean for mean in means if mean is not None]
        if len(known) > 1 and min(known) < max(known):
            for row, mean in zip(made, means, strict=True):
                row[i] = replace(row[i], is_best=mean == max(known))
    return made


def _scores(runs: Iterable[StudyRun], shown: Sequence[str]) -> list[Score]:
    members = list(runs)
    return [Score(_known(score_of(run, heading) for run in members), places(heading)) for heading in shown]


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(value for value in map(finite, values) if value is not None)


def _count(runs: Sequence[StudyRun], of: int | None = None) -> Cell:
    """How many have scores: "3", or "2 of 3" in the recipe."""
    done, there = (
        sum(any(value is not None for value in run.scores.values()) for run in runs),
        len(runs) if of is None else of,
    )
    return done if done == there else f"{done} of {there}"


def _strengths(results: StudyResults, split: str) -> Iterator[tuple[str, float, list[StudyRun]]]:
    """Each task vector's method and strength, with its runs."""
    for title, runs in by_method(results.find(kind=VECTOR, split=split)).items():
        for strength in sorted({run.strength or 0.0 for run in runs}):
            yield title, strength, [run for run in runs if (run.strength or 0.0) == strength]


def _named(results: StudyResults) -> str:
    return results.benchmark.upper()
