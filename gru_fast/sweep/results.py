"""What has come of a sweep: cells of gamma and tau, the best one under a constraint, tables.

A cell's state is that of its job: done, failed, pruned, or still to come. Nothing is left out of the tables.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gru_fast.evaluation.judge import TOFU, Judge
from gru_fast.runs.records import DONE, FAILED, PRUNED, Status
from gru_fast.sweep.plan import ORIGINAL

Tau = float | None
PAPER_GAMMA, PAPER_TAU = 0.8, 1.0  # what its Tables 6 and 7 hold fixed
_MARKS = {FAILED: "failed", PRUNED: "pruned"}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        name: of its job, run folder and log.
        method: title of the method.
        gamma, tau: of the run; None for a gamma that has not been drawn yet, or for no clipping.
        state: of the job.
        quality, utility: what it is judged by, of TOFU ln p of Forget Quality and Model Utility; None unless done.
        facts: everything else that is known.
        note: why it has failed or was pruned.
        log: where that is to be read.
    """

    name: str
    method: str
    gamma: float | None
    tau: Tau
    state: str
    quality: float | None = None
    utility: float | None = None
    facts: Mapping[str, Any] | None = None
    note: str = ""
    log: str = ""


@dataclass(frozen=True)
class Results:
    """All cells, and what they are judged by.

    Args:
        original: scores of the original model by heading, empty while unknown.
        cells: of each method, by title.
        share: of the original's utility that the best run must keep.
        judge: which scores quality and utility are.
    """

    original: Mapping[str, Any]
    cells: Mapping[str, Sequence[Cell]]
    share: float
    judge: Judge = TOFU

    @property
    def least_utility(self) -> float | None:
        """The utility to be kept; None while the original's is unknown."""
        utility = self.original.get(self.judge.utility)
        return None if utility is None else self.share * utility

    def keeps_enough(self, cell: Cell) -> bool:
        """Whether a finished run has kept that much."""
        least = self.least_utility
        return least is not None and cell.utility is not None and cell.utility >= least

    def best(self, method: str) -> Cell | None:
        """The cell of the best quality among those that keep enough; of equals, that of the highest utility.

        None: there is none.
        """
        cells = self.cells[method]
        place = self.judge.best_of([(cell.quality, cell.utility) for cell in cells], self.least_utility)
        return None if place is None else cells[place]


def collect(status: Mapping[str, Status], share: float, judge: Judge = TOFU) -> Results:
    """The cells of jobs."""
    from gru_fast.unlearn import methods

    cells: dict[str, list[Cell]] = {}
    for job in status.values():
        if job.name != ORIGINAL:
            title = methods.get(job.spec["method"]).title
            cells.setdefault(title, []).append(_cell(job, title, judge))
    original = status[ORIGINAL].facts if ORIGINAL in status else {}
    return Results(original, cells, share, judge)


def _cell(job: Status, title: str, judge: Judge) -> Cell:
    is_done = job.state == DONE
    return Cell(
        name=job.name,
        method=title,
        gamma=job.spec.get("gamma"),
        tau=job.spec.get("tau"),
        state=job.state,
        quality=job.facts.get(judge.quality) if is_done else None,
        utility=job.facts.get(judge.utility) if is_done else None,
        facts=job.facts if is_done else {},
        note=job.reason,
        log=job.log,
    )


def axis(cells: Sequence[Cell], name: str) -> list[Any]:
    """The values of gamma or tau in ``cells``, from small to large; no clipping is the largest tau."""
    values = {getattr(cell, name) for cell in cells}
    return sorted(values, key=lambda value: float("inf") if value is None else value)


def is_grid(cells: Sequence[Cell]) -> bool:
    """Whether there is a run of every gamma with every tau."""
    size = len(axis(cells, "gamma")) * len(axis(cells, "tau"))
    return len(cells) == size and all(cell.gamma is not None for cell in cells)


def at(cells: Sequence[Cell], gamma: float, tau: Tau) -> Cell | None:
    """The cell of a pair, None where there is none."""
    return next((cell for cell in cells if (cell.gamma, cell.tau) == (gamma, tau)), None)


def shown_tau(tau: Tau) -> str:
    """tau in a table: "1", or "none" without clipping."""
    return "none" if tau is None else f"{tau:g}"


# ---- tables ----------------------------------------------------------------------------------------------------------


def text(results: Results) -> str:
    """The best run of each method, aligned, for the console."""
    rows = _best_rows(results)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], "", _rule(results)])


def markdown(results: Results) -> str:
    """The best runs, then the shapes of the paper's Table 6 (over tau) and Table 7 (over gamma), then every pair."""
    parts = ["## Best runs", _markdown(_best_rows(results)), _rule(results)]
    if all(is_grid(cells) for cells in results.cells.values()):
        parts += ["## Over tau", _markdown(_over(results, "tau")), "## Over gamma", _markdown(_over(results, "gamma"))]
        for method, cells in results.cells.items():
            parts += [f"## {method}: {results.judge.quality} / {results.judge.utility}", _markdown(_pairs(cells))]
    else:
        parts += [part for method, cells in results.cells.items() for part in (f"## {method}", _list(results, cells))]
    return "\n\n".join([*parts, _notes(results)]).rstrip() + "\n"


def comma_separated(results: Results) -> str:
    """Every run, unrounded."""
    rows = []
    for cells in results.cells.values():
        for cell in cells:
            point = {"gamma": cell.gamma, "tau": None if cell.gamma is None else shown_tau(cell.tau)}
            row = {"run": cell.name, "method": cell.method, **point, "state": cell.state}
            row |= {"keeps_enough": results.keeps_enough(cell), **(cell.facts or {})}
            rows.append({**row, **point, "note": cell.note})
    names = list(dict.fromkeys(name for row in rows for name in row if name != "note"))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*names, "note"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _best_rows(results: Results) -> list[list[str]]:
    names = (results.judge.quality, results.judge.utility)
    rows = [["method", "gamma", "tau", *names, "done", "pruned", "failed"]]
    if results.original:
        scores = [_number(results.original.get(name)) for name in names]
        rows.append(["Original", "", "", *scores, "", "", ""])
    for method, cells in results.cells.items():
        best = results.best(method)
        counts = [str(sum(cell.state == state for cell in cells)) for state in (DONE, PRUNED, FAILED)]
        counts[0] += f" of {len(cells)}"
        point = ["-"] * 4
        if best is not None:
            point = [f"{best.gamma:g}", shown_tau(best.tau), _number(best.quality), _number(best.utility)]
        rows.append([method, *point, *counts])
    return rows


def _rule(results: Results) -> str:
    judge, least = results.judge, results.least_utility
    bound = "unknown yet" if least is None else f"{least:.4f}"
    return (
        f"Best: the {judge.best} {judge.short} of the runs with {judge.utility} >= {bound}, {results.share:.0%} of the "
        "original model's; "
        '"-" where no run keeps that much.'
    )


def _over(results: Results, name: str) -> list[list[str]]:
    """Both scores of each method over tau or gamma, the other fixed where the paper has it, else at the best run."""
    other = "gamma" if name == "tau" else "tau"
    values = axis([cell for cells in results.cells.values() for cell in cells], name)
    rows = [["method", other, "", *(shown_tau(value) for value in values)]]
    for method, cells in results.cells.items():
        fixed = _fixed(results, method, other)
        points = [(fixed, value) if other == "gamma" else (value, fixed) for value in values]
        for heading, attribute in ((results.judge.short, "quality"), (results.judge.utility, "utility")):
            shown = [_shown(at(cells, *point), attribute) for point in points]
            rows.append([method, shown_tau(fixed), heading, *shown])
    return rows


def _fixed(results: Results, method: str, name: str) -> Any:
    values, usual = axis(results.cells[method], name), PAPER_GAMMA if name == "gamma" else PAPER_TAU
    best = results.best(method)
    if usual in values:
        return usual
    return values[-1] if best is None else getattr(best, name)


def _pairs(cells: Sequence[Cell]) -> list[list[str]]:
    gammas, taus = axis(cells, "gamma"), axis(cells, "tau")
    rows = [["gamma \\ tau", *map(shown_tau, taus)]]
    for gamma in gammas:
        found = [at(cells, gamma, tau) for tau in taus]
        rows.append([f"{gamma:g}", *(_both(cell) for cell in found)])
    return rows


def _list(results: Results, cells: Sequence[Cell]) -> str:
    rows = [["run", "gamma", "tau", results.judge.quality, results.judge.utility]]
    for cell in cells:
        point = ["-" if value is None else f"{value:.4g}" for value in (cell.gamma, cell.tau)]
        rows.append([cell.name, *point, _shown(cell, "quality"), _shown(cell, "utility")])
    return _markdown(rows)


def _notes(results: Results) -> str:
    cells = [cell for found in results.cells.values() for cell in found if cell.state in _MARKS]
    return "\n".join(f"- `{cell.name}` {cell.state}: {cell.note}" for cell in cells)


def _both(cell: Cell | None) -> str:
    quality = _shown(cell, "quality")
    return quality if quality in {"-", *_MARKS.values()} else f"{quality} / {_shown(cell, 'utility')}"


def _shown(cell: Cell | None, attribute: str) -> str:
    if cell is None:
        return "-"
    return _MARKS.get(cell.state) or _number(getattr(cell, attribute))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
