"""Figures of runs: what GRU did to each step, and what came of it. matplotlib, without a display.

steps.png      retain loss and cosine over steps, without and with GRU (the paper's Figure 1)
angles.png     angle to the retain gradient over steps, before and after rectification (Figure 7)
tradeoff.png   removal against retention, an arrow from each method to itself with GRU (Figure 4)
path.png       Probability of what is kept against that of what is removed, along each run, where runs have logged it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gru_fast.report.collect import Entry, pairs, plane_of, steps

PLAIN, GRU, REFERENCE = "#d55e00", "#0072b2", "#444444"  # Okabe and Ito's: told apart by the colour-blind too
FAINT = "#f3f3f3"
MARKERS = "osD^vPX*<>"
_FORMATS: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
WIDE = 30  # largest over smallest loss from which on a log scale is drawn
_MANY_STEPS = 50  # from here on single steps are drawn thin, with their moving average
# Logged along a run by those who can: mean exp(-loss) of the rows to forget and of rows to keep.
FORGET_PROBABILITY, RETAIN_PROBABILITY = "eval_forget_probability", "eval_retain_probability"

_STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "gru_fast",  # same runs, same file
    "svg.fonttype": "none",
}


def require() -> None:
    """Raises ModuleNotFoundError, with what to install, where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'gru_fast[unlearn]'")


Drawing = Callable[[Sequence[Entry]], Any]  # a figure; None where the entries have no data for it


def write(entries: Sequence[Entry], folder: Path, drawings: Mapping[str, Drawing] | None = None) -> list[Path]:
    """Draws what the entries have the data for; returns the PNG files. Each has an SVG beside it.

    Args:
        drawings: by name; None: those of this file.

    Raises:
        ModuleNotFoundError: no matplotlib.
    """
    require()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, draw in (_FIGURES if drawings is None else drawings).items():
        with style():
            figure = draw(entries)
            if figure is not None:
                found.append(save(figure, folder, name))
    return found


def save(figure: Any, folder: Path, name: str) -> Path:
    """Writes a figure as PNG and SVG, the same bytes for the same figure; returns the PNG."""
    for suffix, metadata in _FORMATS.items():
        unfinished = folder / f".{name}.{suffix}"
        figure.savefig(unfinished, format=suffix, dpi=150, metadata=metadata)
        unfinished.replace(folder / f"{name}.{suffix}")
    return folder / f"{name}.png"


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, while one is drawn and saved."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def panels(rows: int, columns: int, width: float = 3.3, height: float = 2.5, **options: Any) -> tuple[Any, Any]:
    """A figure and its (rows, columns) axes. Not pyplot's: nothing global, no display, no windows."""
    from matplotlib.figure import Figure

    size = (max(width * columns, 5.0) + 0.6, height * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _logged(entries: Sequence[Entry], *names: str) -> dict[str, list[Entry]]:
    """Unlearning runs that have logged any of ``names``, each once, by method."""
    found: dict[str, dict[Path, Entry]] = {}
    for entry in entries:
        if entry.is_unlearned and any(steps(entry, name)[0] for name in names):
            found.setdefault(entry.title, {}).setdefault(entry.run.folder, entry)
    return {title: list(runs.values()) for title, runs in found.items()}


def _color(entry: Entry) -> str:
    return GRU if entry.rectified else PLAIN


# ---- over steps ------------------------------------------------------------------------------------------------------


def over_steps(entries: Sequence[Entry]) -> Any:
    """Retain loss (above) and cosine of g and the retain gradients' average (below); a column a method."""
    methods = _logged(entries, "retain_loss", "cos")
    if not methods:
        return None
    figure, axes = panels(2, len(methods), sharex="col", sharey="row")
    for column, (title, runs) in enumerate(methods.items()):
        loss, cosine = axes[0, column], axes[1, column]
        for entry in runs:
            _line(loss, *steps(entry, "retain_loss"), _color(entry))
            _line(cosine, *steps(entry, "cos"), _color(entry))
        cosine.axhspan(-1.05, 0.0, color=FAINT, zorder=0)
        cosine.axhline(0.0, color=REFERENCE, linewidth=0.8)
        cosine.set_ylim(-1.05, 1.05)
        loss.set_title(title)
        cosine.set_xlabel("optimizer step")
    if spread(axes[0]) > WIDE:
        axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("retain loss\n(nats per token)")
    axes[1, 0].set_ylabel("cos(unlearning gradient,\nretain gradient)")
    axes[1, -1].text(0.98, 0.03, "conflict: the step would raise the retain loss", **_note(axes[1, -1]), ha="right")
    legend(figure, [("without GRU", PLAIN), ("with GRU", GRU)])
    return figure


def angles(entries: Sequence[Entry]) -> Any:
    """Angle between g and the average retain gradient of each step; a column a method."""
    methods = _logged(entries, "angle_before")
    if not methods:
        return None
    figure, axes = panels(1, len(methods), height=3.0, sharey=True)
    for axis, (title, runs) in zip(axes[0], methods.items(), strict=True):
        axis.axhspan(90, 180, color=FAINT, zorder=0)
        axis.axhline(90, color=REFERENCE, linewidth=0.8)
        for entry in runs:
            x, before = steps(entry, "angle_before")
            if entry.rectified:
                _dots(axis, x, before, GRU, filled=False)
                _dots(axis, *steps(entry, "angle_after"), GRU, filled=True)
            else:
                _dots(axis, x, before, PLAIN, filled=True)
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
    axes[0, 0].set_ylim(0, 180)
    axes[0, 0].set_yticks(range(0, 181, 45))
    axes[0, 0].set_ylabel("angle to the retain gradient\n(degrees)")
    axes[0, -1].text(0.98, 0.96, "above 90°: raises the retain loss", **_note(axes[0, -1]), ha="right", va="top")
    legend(
        figure,
        [("without GRU", PLAIN), ("with GRU, before", (GRU, "none")), ("with GRU, after", GRU)],
        marker="o",
    )
    return figure


def _line(axis: Any, x: list[int], y: list[float], color: str) -> None:
    if len(x) < _MANY_STEPS:
        axis.plot(x, y, color=color, linewidth=1.6, marker="o", markersize=2.5 if len(x) > 12 else 4)
        return
    axis.plot(x, y, color=color, linewidth=0.6, alpha=0.4)
    axis.plot(x, smooth(y, max(2, len(y) // 40)), color=color, linewidth=1.8)


def _dots(axis: Any, x: list[int], y: list[float], color: str, *, filled: bool) -> None:
    size = 18 if len(x) < _MANY_STEPS else 9
    axis.scatter(x, y, s=size, facecolors=color if filled else "none", edgecolors=color, linewidths=0.9, zorder=3)


def smooth(values: list[float], half: int) -> list[float]:
    """Mean over the ``half`` neighbours on either side."""
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def spread(axes: Iterable[Any]) -> float:
    """Largest over smallest value drawn; 0 where some are not above 0."""
    values = [value for axis in axes for line in axis.get_lines() for value in line.get_ydata()]
    return max(values) / min(values) if values and min(values) > 0 else 0.0


# ---- what came of it -------------------------------------------------------------------------------------------------


def tradeoff(entries: Sequence[Entry]) -> Any:
    """Retention (x) and removal (y): an arrow from each method to itself with GRU; a panel a benchmark and split."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.plane is not None:
            groups.setdefault((str(entry.benchmark), str(entry.split)), []).append(entry)
    titles = dict.fromkeys(entry.title for group in groups.values() for entry in group if entry.is_unlearned)
    if not titles:
        return None
    figure, axes = panels(1, len(groups), width=5.6, height=4.0)
    marks = dict(zip(titles, MARKERS * len(titles), strict=False))
    for axis, ((benchmark, split), group) in zip(axes[0], groups.items(), strict=True):
        for plain, rectified in pairs(group):
            arrow(axis, plain.plane, rectified.plane)
        for entry in group:
            if entry.is_unlearned:
                x, y = entry.plane or (0.0, 0.0)
                axis.scatter(x, y, s=70, marker=marks[entry.title], color=_color(entry), zorder=3)
            else:
                _reference(axis, entry)
        across, up = (f"{heading}: {better}" for heading, better in plane_of(benchmark).items())
        axis.set_title(f"{benchmark.upper()} {split}")
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.margins(0.08, 0.1)
    shapes = [(title, "#999999", mark) for title, mark in marks.items()]
    legend(figure, [*shapes, ("without GRU", PLAIN), ("with GRU", GRU)], marker="s")
    return figure


def _reference(axis: Any, entry: Entry) -> None:
    x, y = entry.plane or (0.0, 0.0)
    axis.scatter(x, y, s=90, marker="P", color=REFERENCE, zorder=2)
    where = {"xytext": (-9, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axis.annotate(entry.title.partition(" ")[0].lower(), (x, y), **where, color=REFERENCE, fontsize=8.5)


def paths(entries: Sequence[Entry]) -> Any:
    """Probability of rows to keep (y) against that of the rows to forget (x) along the runs; a column a method."""
    methods = _logged(entries, FORGET_PROBABILITY)
    if not methods:
        return None
    figure, axes = panels(1, len(methods), height=3.0, sharex=True, sharey=True)
    for axis, (title, runs) in zip(axes[0], methods.items(), strict=True):
        for entry in runs:
            x, y = steps(entry, FORGET_PROBABILITY)[1], steps(entry, RETAIN_PROBABILITY)[1]
            axis.plot(x, y, color=_color(entry), linewidth=1.8, marker="o", markersize=4)
        axis.set_title(title)
        axis.set_xlabel("forget Probability (removed →)")
    axes[0, 0].set_xlim(1.02, -0.02)
    axes[0, 0].set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel("retain Probability")
    axes[0, 0].text(0.03, 0.03, "at the same removal,\nhigher is better", **_note(axes[0, 0]))
    legend(figure, [("without GRU", PLAIN), ("with GRU", GRU)])
    return figure


def arrow(axis: Any, start: Any, end: Any) -> None:
    """An arrow between two points, in grey."""
    style = {"arrowstyle": "-|>", "color": "#8a8a8a", "linewidth": 1.2, "shrinkA": 5, "shrinkB": 6}
    axis.annotate("", end, start, arrowprops=style, zorder=1)


def _note(axis: Any) -> dict[str, Any]:
    return {"transform": axis.transAxes, "fontsize": 8, "color": REFERENCE, "style": "italic"}


def legend(figure: Any, items: Sequence[tuple[Any, ...]], marker: str | None = None) -> None:
    """A legend above the panels: (label, colour, or (edge, face) colours, and where given a marker of its own)."""
    from matplotlib.lines import Line2D

    handles = []
    for label, color, *own in items:
        edge, face = color if isinstance(color, tuple) else (color, color)
        sign = own[0] if own else marker
        handles.append(
            Line2D(
                [],
                [],
                color=edge,
                markerfacecolor=face,
                markeredgecolor=edge,
                label=label,
                linewidth=2.0,
                marker=sign,
                linestyle="none" if sign else "-",
                markersize=7,
            )
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.5)


_FIGURES: dict[str, Drawing] = {
    "steps": over_steps,
    "angles": angles,
    "tradeoff": tradeoff,
    "path": paths,
}
