"""Figures of attacks: how much of the way to the original model each got, without and with GRU.

attack-quantize.png   a bar a format
attack-relearn.png    over the steps of fine-tuning; a column a source, a row a learning rate
attack-sample.png     over the number of samples; a column a temperature

The y axis is the share of the way back of the first score that says what is known (of TOFU: Probability, where the
attack has it, else ROUGE-L). Dashed in grey, and as marks on the bars: the same attack on the retrained model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gru_fast.report.collect import Entry
from gru_fast.report.figures import GRU, MARKERS, PLAIN, REFERENCE, Drawing, legend, panels

_LABELS = (("without GRU", PLAIN), ("with GRU", GRU), ("retrained model", REFERENCE))
_FIRST = "forget prob"
_Y = "share of the way\nback to the original"


def formats(entries: Sequence[Entry]) -> Any:
    """Bars by format, a panel a method."""
    runs = _by_method(entries, "quantize")
    if not runs:
        return None
    figure, axes = panels(1, len(runs), height=3.0, sharey=True)
    for axis, (title, group) in zip(axes[0], runs.items(), strict=True):
        names = list(dict.fromkeys(row["at"]["format"] for entry in group for row in _rows(entry, "quantize")))
        width = 0.8 / len(group)
        for place, entry in enumerate(group):
            for row in _rows(entry, "quantize"):
                x = names.index(row["at"]["format"]) + (place - (len(group) - 1) / 2) * width
                axis.bar(x, row["back"], 0.9 * width, color=_color(entry))
                if row["retained_back"] is not None:
                    axis.plot([x - 0.45 * width, x + 0.45 * width], [row["retained_back"]] * 2, **_retrained())
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_title(title)
    _finish(figure, axes)
    return figure


def steps(entries: Sequence[Entry]) -> Any:
    """Curves over the steps of fine-tuning."""
    return _curves(entries, "relearn", "learning_rate", "source", "step", "steps of fine-tuning")


def samples(entries: Sequence[Entry]) -> Any:
    """Curves over the number of samples."""
    return _curves(entries, "sample", None, "temperature", "k", "samples (k)")


FIGURES: Mapping[str, Drawing] = {"attack-quantize": formats, "attack-relearn": steps, "attack-sample": samples}


# ---- parts -----------------------------------------------------------------------------------------------------------


def _curves(entries: Sequence[Entry], attack: str, down: str | None, across: str, over: str, x_label: str) -> Any:
    """A panel for each setting: ``down`` and ``across`` name what differs between rows and columns of panels."""
    methods = _by_method(entries, attack)
    attacked = [entry for group in methods.values() for entry in group]
    if not attacked:
        return None
    found = [(entry, row) for entry in attacked for row in _rows(entry, attack)]
    lines = list(dict.fromkeys(row["at"][down] if down else None for _, row in found))
    columns = list(dict.fromkeys(row["at"][across] for _, row in found))
    marks = dict(zip(methods, MARKERS * len(methods), strict=False))
    figure, axes = panels(len(lines), len(columns), sharex=True, sharey=True)
    for entry in attacked:
        for place, (line, column) in enumerate((line, column) for line in lines for column in columns):
            axis = axes[place // len(columns), place % len(columns)]
            rows = [
                row
                for row in _rows(entry, attack)
                if row["at"][across] == column and (down is None or row["at"][down] == line)
            ]
            x = [row["at"][over] for row in rows]
            y = [row["back"] for row in rows]
            axis.plot(x, y, color=_color(entry), marker=marks[entry.title], markersize=4, linewidth=1.6)
            axis.plot(x, [_number(row["retained_back"]) for row in rows], **_retrained())
            named = f", {down.replace('_', ' ')} {line:g}" if down else ""
            axis.set_title(f"{column if isinstance(column, str) else f'{across} {column:g}'}{named}")
            axis.set_xscale("log")
            axis.set_xticks(x, map(str, x))
            axis.minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel(x_label)
    _finish(figure, axes, [(title, "#999999", mark) for title, mark in marks.items()])
    return figure


def _by_method(entries: Sequence[Entry], attack: str) -> dict[str, list[Entry]]:
    """Unlearned runs that were attacked so, and whose way back is known, by method."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.is_unlearned and any(_rows(entry, attack)):
            found.setdefault(entry.title, []).append(entry)
    return found


def _rows(entry: Entry, attack: str) -> list[Mapping[str, Any]]:
    """The findings of an attack on one score, those of which the share is known."""
    found = [row for row in entry.attacks.get(attack, {}).get("findings", ()) if row["is_knowledge"]]
    known = [row for row in found if row["back"] is not None]
    score = next(_scores(known), None)
    return [row for row in known if row["score"] == score]


def _scores(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Names of scores, the one that is drawn first."""
    names = dict.fromkeys(row["score"] for row in rows)
    yield from sorted(names, key=lambda name: name != _FIRST)


def _color(entry: Entry) -> str:
    return GRU if entry.rectified else PLAIN


def _retrained() -> dict[str, Any]:
    return {"color": REFERENCE, "linewidth": 1.2, "linestyle": "--"}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _finish(figure: Any, axes: Any, shapes: Sequence[tuple[str, str, str]] = ()) -> None:
    for axis in axes.flat:
        axis.axhline(0.0, color=REFERENCE, linewidth=0.8)
        axis.axhline(1.0, color=REFERENCE, linewidth=0.8)
    for axis in axes[:, 0]:
        axis.set_ylabel(_Y)
    legend(figure, [*shapes, *_LABELS])
