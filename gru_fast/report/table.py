"""Entries as a table: aligned text, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gru_fast import attacks
from gru_fast.attacks.parts.outcome import columns as columns_of
from gru_fast.attacks.parts.outcome import worst
from gru_fast.evaluation import points
from gru_fast.report.collect import Entry

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """One column for people to read.

    Args:
        title: its heading.
        value: what an entry has; None where it has nothing.
        text: a value as text; None: numbers with as many decimals as the column needs.
        number: aligned on the right.
    """

    title: str
    value: Callable[[Entry], Value]
    text: Callable[[Any], str] | None = None
    number: bool = True

    def cells(self, entries: Sequence[Entry]) -> list[str]:
        """The column's texts, "-" where there is nothing."""
        values = [self.value(entry) for entry in entries]
        text = self.text or _decimals([value for value in values if isinstance(value, float)])
        return ["-" if value is None else text(value) for value in values]


def score(heading: str, title: str | None = None) -> Column:
    """The column of a benchmark's score."""
    return Column(title or heading, lambda entry: entry.scores.get(heading), short_p if heading == "p" else None)


def result(key: str) -> Callable[[Entry], Value]:
    """The value in an entry's run.json."""
    return lambda entry: (entry.run.result or {}).get(key)


def gru_option(name: str) -> Callable[[Entry], Value]:
    """The option of a rectified run; None of others, which may have it without using it."""
    return lambda entry: entry.run.config.get(name) if entry.rectified else None


def short_p(p: float) -> str:
    """A p-value in two digits."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def _decimals(values: Sequence[float]) -> Callable[[Any], str]:
    """Four decimals for shares, two for what goes beyond them."""
    places = 4 if all(abs(value) <= 1.5 for value in values) else 2
    return lambda value: f"{value:.{places}f}" if isinstance(value, float) else str(value)


SECONDS_PER_STEP = Column("s/step", result("seconds_per_step"), "{:.3g}".format)
_METHOD = Column("method", lambda entry: entry.title, number=False)
_GRU = Column("GRU", lambda entry: ("yes" if entry.rectified else "no") if entry.is_unlearned else "", number=False)
_HOW = [Column(name, gru_option(name), "{:g}".format) for name in ("gamma", "tau")]
_SPLIT = Column("split", lambda entry: f"{entry.split} (quick)" if entry.is_quick else entry.split, number=False)
_VERDICT = Column("verdict", result("verdict"), number=False)  # of gru-fast forget, as is
_KEPT = Column("kept", result("kept"), "{:.1%}".format)
_SKIPPED = Column("skipped", lambda entry: entry.not_applied if entry.is_unlearned else None)
_RUN = Column("run", lambda entry: os.path.relpath(entry.run.folder), number=False)


def _best_epoch(entry: Entry) -> Value:
    """Of a run that was evaluated along its way."""
    along = points.read(entry.run.folder)
    return None if along is None else str(along)


_BEST = Column("best epoch", _best_epoch, number=False)


def columns(entries: Sequence[Entry]) -> list[Column]:
    """The columns for entries of one benchmark; those that no entry has anything in are left out, as are gamma and tau
    where all rectified runs have the same."""
    headings = dict.fromkeys(heading for entry in entries for heading in entry.scores)
    rectified = [entry for entry in entries if entry.rectified]
    how = [column for column in _HOW if len({column.value(entry) for entry in rectified}) > 1]
    attacked = dict.fromkeys(heading for entry in entries for heading in _backs(entry))
    wanted = [_METHOD, _GRU, *how, _SPLIT, _VERDICT, _KEPT, *map(score, headings), *map(_back, attacked)]
    wanted += [_BEST, SECONDS_PER_STEP, _SKIPPED, _RUN]
    return [column for column in wanted if any(column.value(entry) not in {None, ""} for entry in entries)]


def _backs(entry: Entry) -> dict[str, float | None]:
    """What each attack has brought back, by heading, in the order in which attacks are done."""
    known = attacks.names()
    ordered = sorted(entry.attacks, key=lambda name: known.index(name) if name in known else len(known))
    return {heading: value for name in ordered for heading, value in columns_of(entry.attacks[name]).items()}


def _back(heading: str) -> Column:
    return Column(heading, lambda entry: _backs(entry).get(heading), "{:.0%}".format)


def text(entries: Sequence[Entry]) -> str:
    """Aligned tables, one a benchmark, and below what is missing in them."""
    tables = [aligned(group, columns(group)) for group in _by_benchmark(entries)]
    notes = [f"{os.path.relpath(entry.run.folder)}: {entry.note}" for entry in entries if entry.note]
    return "\n\n".join([*tables, *(["\n".join(notes)] if notes else [])])


def aligned(entries: Sequence[Entry], shown: Sequence[Column]) -> str:
    """The columns under their headings."""
    cells = [[column.title, *column.cells(entries)] for column in shown]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join(
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, shown, strict=True)
        ).rstrip()
        for row in zip(*cells, strict=True)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(entries: Sequence[Entry]) -> str:
    """A table of GitHub's Markdown for each benchmark, with what is missing and what the numbers are."""
    parts = []
    for group in _by_benchmark(entries):
        shown = columns(group)
        rows = [
            [column.title for column in shown],
            ["---:" if column.number else "---" for column in shown],
            *zip(*(column.cells(group) for column in shown), strict=True),
        ]
        parts.append("\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows))
        parts += [_LEGENDS[name] for name in {str(entry.benchmark) for entry in group} & _LEGENDS.keys()]
        parts += [_LEGEND_OF_ATTACKS] if any(entry.attacks for entry in group) else []
    notes = [f"- `{os.path.relpath(entry.run.folder)}`: {entry.note}" for entry in entries if entry.note]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


_LEGENDS = {
    "tofu": "FQ: Forget Quality, the p-value of a Kolmogorov-Smirnov test against the retrained model, and its natural "
    "logarithm; 0 is a model that cannot be told from one that never saw the forget set. MU: Model Utility, 0 to 1, "
    "higher is better. ROUGE-L: recall of the written answers; prob: Probability of the true ones; 0 to 1."
}

_LEGEND_OF_ATTACKS = (
    "back: of the scores that say what is known, the greatest share of the way from unlearned to original model "
    "that an attack got back; what the same attack does to the retrained model is in its summary, and in the CSV."
)


def _by_benchmark(entries: Sequence[Entry]) -> list[list[Entry]]:
    groups: dict[str | None, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.benchmark, []).append(entry)
    return list(groups.values())


def comma_separated(entries: Sequence[Entry]) -> str:
    """Everything there is of each entry, unrounded: a row each, a column for every number of any summary."""
    rows = [{**_facts(entry), **_flat(entry.summary), **_flat(_of_attacks(entry), "attacks.")} for entry in entries]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_OPTIONS = (
    "method", "rectify", "gamma", "tau", "split", "subset", "model", "learning_rate", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed",
)  # fmt: skip
_RESULTS = ("steps", "seconds", "seconds_per_step", "peak_memory_bytes", "skipped", "degenerate")


def _facts(entry: Entry) -> dict[str, Value]:
    config, outcome = entry.run.config, entry.run.result or {}
    return {
        "run": str(entry.run.folder),
        "title": entry.title,
        "state": "finished" if entry.run.complete else "not finished",
        **{name: config.get(name) for name in _OPTIONS},
        **{name: outcome.get(name) for name in _RESULTS},
        "evaluation": entry.evaluation,
        "note": entry.note,
    }


def _of_attacks(entry: Entry) -> dict[str, Any]:
    """What came back, of the model and of the retrained one, by attack."""
    return {
        name: {"back": worst(summary), "retained_back": worst(summary, "retained_back")}
        for name, summary in entry.attacks.items()
    }


def _flat(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Numbers of nested mappings under dotted names; settings are not results."""
    found: dict[str, Value] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping) and name != "settings":
            found.update(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}" if prefix or name != "seconds" else "eval_seconds"] = value
    return found
