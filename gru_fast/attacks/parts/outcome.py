"""What came of an attack: findings, each a score before and after, and the file that keeps them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gru_fast.attacks.parts.target import Target
from gru_fast.evaluation.record_folder import differing
from gru_fast.metrics.recovery import share_back
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Finding:
    """One score under one attack.

    Args:
        what: the attack as a row of a table ("int4-g64", "forget, lr 1e-4, 10 steps").
        score: its heading ("forget ROUGE-L").
        before, after: of the unlearned model, as it is and under attack.
        original: of the model before unlearning, as it is; None where there is none.
        retained_before, retained_after: of the retrained model, which never knew; None where there is none.
        interval: 95% of the score after, over rows; None where it was not taken.
        is_knowledge: high where the forget set is known. What came back is said of these.
        is_shown: in the table that is printed.
        at: what the attack was set to, for figures: {"format": "int4-g64"}, {"step": 10, "learning_rate": 1e-4, ...}.
    """

    what: str
    score: str
    before: float | None
    after: float | None
    original: float | None = None
    retained_before: float | None = None
    retained_after: float | None = None
    interval: tuple[float, float] | None = None
    is_knowledge: bool = True
    is_shown: bool = True
    at: Mapping[str, Any] = field(default_factory=dict)

    @property
    def back(self) -> float | None:
        """The share of the way back to the original, see :func:`gru_fast.metrics.recovery.share_back`.

        None as well where the original knows no more than the model: there is nothing to come back.
        """
        return self._back(self.before, self.after)

    @property
    def retained_back(self) -> float | None:
        """The same of the retrained model, from its own score: what the attack teaches rather than finds."""
        return self._back(self.retained_before, self.retained_after)

    def _back(self, before: float | None, after: float | None) -> float | None:
        share = share_back(before, after, self.original)
        if share is None or before is None or self.original is None:
            return None
        return share if self.original > before or not self.is_knowledge else None

    def to_json(self) -> dict[str, Any]:
        """As it is kept, with the shares."""
        return {**asdict(self), "at": dict(self.at), "back": self.back, "retained_back": self.retained_back}


@dataclass(frozen=True)
class Outcome:
    """What an attack found. ``more``: further facts, JSON."""

    findings: Sequence[Finding]
    more: Mapping[str, Any] = field(default_factory=dict)


def carried_out(attack: Any, options: Any, target: Target) -> dict[str, Any]:
    """The summary of an attack, from its file if it is there for this question, else the attack is made now.

    Every process must call it. What an attack has finished of its work it finds again itself.

    Args:
        attack: its module, see :mod:`gru_fast.attacks`.
    """
    name = attack.__name__.rpartition(".")[2]
    folder = target.folder / name
    settings = {**target.facts, **attack.settings(options, target)}

    def known() -> dict[str, Any] | None:
        file = folder / SUMMARY_FILE
        if target.unlearned.overwrite or not file.is_file():
            return None
        summary: dict[str, Any] = read_json(file)
        is_new = all(subject.is_older_than(file) for subject in target.subjects.values())
        return summary if is_new and not differing(summary["settings"], settings) else None

    found = on_first(known)
    if found is not None:
        return found
    on_first(lambda: (folder / SUMMARY_FILE).unlink(missing_ok=True))  # else a stopped attack would look finished
    began = time.monotonic()
    outcome: Outcome = attack.run(options, target)
    found = {
        "attack": name,
        "findings": [finding.to_json() for finding in outcome.findings],
        **outcome.more,
        "seconds": round(time.monotonic() - began, 3),
        "settings": settings,
    }
    on_first(lambda: write_json(folder / SUMMARY_FILE, found))
    return found


# ---- reading ---------------------------------------------------------------------------------------------------------


def worst(summary: Mapping[str, Any], key: str = "back") -> float | None:
    """The greatest share of the way back, over the scores that say what is known; None where none is known."""
    found = worst_finding(summary, key)
    return None if found is None else found[key]


def worst_finding(summary: Mapping[str, Any], key: str = "back") -> dict[str, Any] | None:
    """The finding with the greatest share of the way back, of the scores that say what is known."""
    known = [row for row in summary["findings"] if row["is_knowledge"] and row.get(key) is not None]
    return max(known, key=lambda row: row[key], default=None)


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of an attack, by heading."""
    return {f"back: {summary['attack']}": worst(summary)}


def report(summary: Mapping[str, Any]) -> str:
    """The findings as a table, and what they come to."""
    rows = [row for row in summary["findings"] if row["is_shown"]]
    has_retrained = any(row["retained_after"] is not None for row in rows)
    headings = ["before", "after", "original", "back"] + (["retr.", "attacked", "back"] if has_retrained else [])
    wide = max([len(row["what"]) for row in rows] + [len(summary["attack"])])
    of = max([len(row["score"]) for row in rows] + [5])
    lines = [f"{summary['attack']:<{wide}}  {'score':<{of}}" + "".join(f"{text:>10}" for text in headings)]
    last = None
    for row in rows:
        cells = [*map(_number, (row["before"], row["after"], row["original"])), _percent(row["back"])]
        if has_retrained:
            cells += [_number(row["retained_before"]), _number(row["retained_after"]), _percent(row["retained_back"])]
        what = "" if row["what"] == last else row["what"]
        tail = "" if row["interval"] is None else "  [{:.3f}, {:.3f}]".format(*row["interval"])
        lines.append(f"{what:<{wide}}  {row['score']:<{of}}" + "".join(f"{cell:>10}" for cell in cells) + tail)
        last = row["what"]
    return "\n".join([*lines, f"back at most: {_most(summary, has_retrained=has_retrained)}"])


def _most(summary: Mapping[str, Any], *, has_retrained: bool) -> str:
    """What the findings come to, in words."""
    most = worst(summary)
    if most is None and all(row["original"] is None for row in summary["findings"]):
        return "not known without the original model; give --original"
    if most is None:
        return "not known: the original model knows no more than the unlearned one, by any of these scores"
    beside = f"; of the retrained model {_percent(worst(summary, 'retained_back'))}" if has_retrained else ""
    return f"{_percent(most)} of the way to the original{beside}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
