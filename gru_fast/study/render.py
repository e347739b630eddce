"""A table with scores over seeds, and its three forms: Markdown, LaTeX (booktabs), CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

from gru_fast.study.statistics import HIGHER, LOWER, NEAR_ZERO, better

_ARROWS = {HIGHER: " ↑", LOWER: " ↓", NEAR_ZERO: " → 0"}
_LONG = 45  # rows from which on LaTeX has the table run over pages
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "−": "$-$", "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$",
    "γ": r"$\gamma$", "τ": r"$\tau$", "α": r"$\alpha$", "×": r"$\times$", "·": r"$\cdot$",
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One score over seeds.

    Args:
        values: of the runs that have it.
        places: decimals it is shown with.
        is_best: of those that it is compared with; shown bold.
    """

    values: tuple[float, ...]
    places: int = 4
    is_best: bool = False

    @property
    def mean(self) -> float | None:
        """None without values."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample (n - 1); None with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    PARTS: ClassVar = ("mean", "std", "n")  # columns of CSV

    @property
    def parts(self) -> tuple[float | None, ...]:
        """One a name of PARTS."""
        return self.mean, self.std, len(self.values)

    def __str__(self) -> str:
        """ "0.5000 ± 0.1000", "0.5000", or "-"."""
        if self.mean is None:
            return "-"
        mean = f"{self.mean:.{self.places}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{self.places}f}"


@dataclass(frozen=True)
class Span:
    """A mean change with its interval, where it has one."""

    mean: float | None
    low: float | None
    high: float | None
    places: int = 4

    PARTS: ClassVar = ("mean", "low", "high")

    @property
    def parts(self) -> tuple[float | None, ...]:
        """One a name of PARTS."""
        return self.mean, self.low, self.high

    def __str__(self) -> str:
        """ "+0.1000 [+0.0500, +0.1500]", "+0.1000", or "-"."""
        if self.mean is None:
            return "-"
        mean = f"{self.mean:+.{self.places}f}"
        return mean if self.low is None else f"{mean} [{self.low:+.{self.places}f}, {self.high:+.{self.places}f}]"


Cell = str | int | float | Score | Span | None


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it is aligned on the right."""

    heading: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its files.
        title: what it shows.
        note: how to read it, in a sentence or a few.
        columns, rows: a cell a column. A text stands as it is, a number with four significant digits.
    """

    name: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def score_column(heading: str) -> Column:
    """The column of a score, with which way it is better."""
    return Column(heading + _ARROWS[better(heading)])


def setting(value: float | None) -> str:
    """A gamma or tau as text; None: there is none."""
    return "none" if value is None else f"{value:g}"


def last_if_none(value: float | None) -> tuple[bool, float]:
    """Sorts None, no clipping, behind every number."""
    return value is None, value or 0.0


def without_empty(table: Table) -> Table:
    """Columns that have nothing in any row are left out."""
    kept = [i for i in range(len(table.columns)) if any(row[i] not in {None, ""} for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows)


def text(cell: Cell) -> str:
    """A cell for people to read; "-" where there is nothing."""
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def sort_value(cell: Cell) -> float | str:
    """What a cell is sorted by: its number where it has one, else its text in lower case; empty where there is none."""
    if isinstance(cell, (Score, Span)):
        return "" if cell.mean is None else cell.mean
    if isinstance(cell, (int, float)):
        return cell
    shown = (cell or "").strip()
    number = re.match(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", shown)
    return float(number.group()) if number else shown.lower()


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    rows = [
        [column.heading for column in table.columns],
        ["---:" if column.number else "---" for column in table.columns],
        *([_emphasised(cell, "**", "**", _markdown(text(cell))) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def latex(table: Table) -> str:
    r"""A table for LaTeX with ``\usepackage{booktabs}``; a long one needs ``\usepackage{longtable}`` as well."""
    spec = "".join("r" if column.number else "l" for column in table.columns)
    head = " & ".join(escaped(column.heading) for column in table.columns) + r" \\"
    body = [
        " & ".join(_emphasised(cell, r"\textbf{", "}", escaped(text(cell))) for cell in row) + r" \\"
        for row in table.rows
    ]
    caption = rf"\caption{{{escaped(table.title)}. {escaped(table.note)}}}\label{{tab:{table.name}}}"
    if len(table.rows) >= _LONG:
        top = [rf"\begin{{longtable}}{{{spec}}}", caption + r" \\", r"\toprule", head, r"\midrule", r"\endhead"]
        return "\n".join([*top, *body, r"\bottomrule", r"\end{longtable}"]) + "\n"
    top = [r"\begin{table}[t]", r"\centering", caption, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """CSV, numbers unrounded: a column of scores becomes mean, std and n, one of changes mean, low and high."""
    parts = [_parts_of(row[i] for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = (
        [f"{column.heading} {name}" for name in names] if names else [column.heading]
        for column, names in zip(table.columns, parts, strict=True)
    )
    writer.writerow(chain.from_iterable(heads))
    for row in table.rows:
        writer.writerow(
            chain.from_iterable(_unrounded(cell, len(names)) for cell, names in zip(row, parts, strict=True))
        )
    return out.getvalue()


def escaped(words: str) -> str:
    """A text with everything that LaTeX would read as its own made harmless."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(words.split()))


FORMS: Mapping[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": comma_separated}


def _parts_of(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The names of what a column's cells consist of; none of plain ones."""
    return next((cell.PARTS for cell in cells if isinstance(cell, (Score, Span))), ())


def _unrounded(cell: Cell, count: int) -> list[object]:
    if isinstance(cell, (Score, Span)):
        return ["" if part is None else part for part in cell.parts]
    return ["" if cell is None else cell, *[""] * (count - 1)]


def _emphasised(cell: Cell, before: str, after: str, shown: str) -> str:
    return f"{before}{shown}{after}" if isinstance(cell, Score) and cell.is_best else shown


def _markdown(words: str) -> str:
    flat = " ".join(words.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("<", "&lt;").replace("*", "\\*")
