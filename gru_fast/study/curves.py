"""Figures over time: steps (the paper's Figure 1), angles (7), scores along the epochs (5, 6). A panel a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gru_fast.report.figures import FAINT, GRU, PLAIN, REFERENCE, WIDE, panels, smooth, spread
from gru_fast.study import results as study
from gru_fast.study.paths import path
from gru_fast.study.results import StudyResults, StudyRun
from gru_fast.study.statistics import by_method, finite, mean, score_of

COLORS = {study.PLAIN: PLAIN, study.CLIPPED: "#009e73", study.GRU: GRU}
NAMES = {study.PLAIN: "plain", study.CLIPPED: "clipping only", study.GRU: "with GRU"}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
FURTHER = (*PALETTE[3:], "#f0e442", "#999999", "#8c564b")  # a recipe's own variants: not those of COLORS
PER_ROW = 4  # panels beside each other; with more they are too small in print
_SEED = {"linewidth": 0.7, "alpha": 0.35}
_MEAN = {"linewidth": 2.0}
LEGEND_COLUMNS = 6
_MANY_STEPS = 50  # from here on means are drawn as moving averages

Series = Sequence[float | None]


def over_steps(results: StudyResults, split: str) -> Any:
    """Retain loss (above) and cosine of g and the retain gradients' average (below): seeds faint, their mean strong."""
    methods = by_method(
        _compared(results, split), lambda run: bool(run.steps.get("retain_loss") or run.steps.get("cos"))
    )
    if not methods:
        return None
    figure, grid = wrapped(len(methods), 2)
    for (title, runs), (loss, cosine) in zip(methods.items(), grid, strict=True):
        for variant, members in by_variant(runs).items():
            _steps(loss, [run.steps.get("retain_loss", ()) for run in members], COLORS[variant])
            _steps(cosine, [run.steps.get("cos", ()) for run in members], COLORS[variant])
        cosine.axhspan(-1.05, 0.0, color=FAINT, zorder=0)
        cosine.axhline(0.0, color=REFERENCE, linewidth=0.8)
        cosine.set_ylim(-1.05, 1.05)
        loss.set_title(title)
        cosine.set_xlabel("optimizer step")
    _one_scale([loss for loss, _ in grid])
    for loss, cosine in grid[::PER_ROW]:
        loss.set_ylabel("retain loss\n(nats per token)")
        cosine.set_ylabel("cos(g, retain gradient)")
    key(figure, [*_variants_of(methods), shaded("conflict: the step would raise the retain loss")])
    return figure


def angles(results: StudyResults, split: str) -> Any:
    """Angle between g and the average retain gradient: plain, and with GRU before and after rectification."""
    methods = by_method(_compared(results, split), lambda run: bool(run.steps.get("angle_before")))
    if not methods:
        return None
    figure, grid = wrapped(len(methods), 1, height=2.9)
    for (title, runs), (axis,) in zip(methods.items(), grid, strict=True):
        axis.axhspan(90, 180, color=FAINT, zorder=0)
        axis.axhline(90, color=REFERENCE, linewidth=0.8)
        for variant, members in by_variant(runs).items():
            before = [run.steps.get("angle_before", ()) for run in members]
            _steps(axis, before, COLORS[variant], ":" if variant == study.GRU else "-")
            if variant == study.GRU:
                _steps(axis, [run.steps.get("angle_after", ()) for run in members], COLORS[variant])
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.set_ylim(0, 180)
        axis.set_yticks(range(0, 181, 45))
    for (axis,) in grid[::PER_ROW]:
        axis.set_ylabel("angle to the\nretain gradient (degrees)")
    handles = [line("plain", PLAIN), line("with GRU, before", GRU, ":"), line("with GRU, after", GRU)]
    key(figure, [*handles, shaded("above 90°: the step would raise the retain loss")])
    return figure


def over_epochs(results: StudyResults, split: str) -> Any:
    """Retention (above) and removal (below) along each run, and those of the original and the retrained model."""
    return _along(results, split, lambda run: len(run.points) > 1, _epochs, "epoch")


def over_distance(results: StudyResults, split: str) -> Any:
    """The same over how far the weights have moved from where the run began: removal at equal distance, not time."""
    return _along(results, split, _has_distances, _distances, "weights moved by, %")


def over_retention(results: StudyResults, split: str) -> Any:
    """Removal (y) over what is still kept (x), from the original on: up and to the right is better."""
    methods = by_method(results.find(kind=study.UNLEARNED, use=(study.COMPARISON, study.FURTHER), split=split))
    ways = {title: [(run, way) for run in runs if (way := path(results, run))] for title, runs in methods.items()}
    ways = {title: found for title, found in ways.items() if found}
    if not ways:
        return None
    variants = list(dict.fromkeys(run.variant for found in ways.values() for run, _ in found))
    colors = {**COLORS, **dict(zip((each for each in variants if each not in COLORS), FURTHER, strict=False))}
    figure, grid = wrapped(len(ways), 1, height=2.9)
    for (title, found), (axis,) in zip(ways.items(), grid, strict=True):
        for run, way in found:
            color = colors.get(run.variant, REFERENCE)
            axis.plot([at.retention for at in way], [at.removal for at in way], color=color, marker=".", linewidth=1.5)
            axis.plot(way[-1].retention, way[-1].removal, "o", color=color, markersize=6)
        axis.set_title(title)
        axis.set_xlabel(f"{results.retention} still kept")
    for (axis,) in grid[::PER_ROW]:
        axis.set_ylabel(f"{results.removal}: forgotten")
    named = [line(NAMES.get(each, each), colors.get(each, REFERENCE)) for each in variants]
    key(figure, [*named, mark("end of a run", REFERENCE, "o")], LEGEND_COLUMNS)
    return figure


# ---- parts -----------------------------------------------------------------------------------------------------------


def by_variant(runs: Iterable[StudyRun]) -> dict[str, list[StudyRun]]:
    """Plain, clipped, with GRU, in this order; those that there are."""
    members = list(runs)
    found = {variant: [run for run in members if run.variant == variant] for variant in COLORS}
    return {variant: chosen for variant, chosen in found.items() if chosen}


def wrapped(count: int, rows: int, width: float = 3.0, height: float = 2.2) -> tuple[Any, list[list[Any]]]:
    """A figure with ``rows`` panels above each other for each of ``count`` methods, PER_ROW methods beside each other.

    Returns:
        The figure, and the panels of each method, from above.
    """
    across = min(count, PER_ROW)
    bands = math.ceil(count / across)
    figure, axes = panels(rows * bands, across, width=width, height=height)
    grid = [
        [axes[band * rows + row, column] for row in range(rows)] for band in range(bands) for column in range(across)
    ]
    for unused in grid[count:]:
        for axis in unused:
            axis.remove()
    return figure, grid[:count]


def references(axis: Any, results: StudyResults, split: str, heading: str) -> None:
    """Horizontal lines where the original and the retrained model are."""
    for kind, look in ((study.ORIGINAL, "--"), (study.RETRAINED, ":")):
        level = mean(score_of(run, heading) for run in results.find(kind=kind, split=split))
        if level is not None:
            axis.axhline(level, color=REFERENCE, linewidth=1.0, linestyle=look, zorder=1)


def reference_lines() -> list[Any]:
    """What a legend says of them."""
    return [line("original", REFERENCE, "--"), line("retrained", REFERENCE, ":")]


def line(label: str, color: str, style: str = "-") -> Any:
    """A line in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=style, linewidth=2, label=label)


def mark(label: str, color: str, marker: str, face: str | None = None) -> Any:
    """A marker in a legend."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"markeredgecolor": color, "markerfacecolor": face or color, "markersize": 7}
    return Line2D([], [], linestyle="none", marker=marker, label=label, **look)


def shaded(label: str) -> Any:
    """A shaded part of panels in a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=FAINT, edgecolor="#cccccc", linewidth=0.5, label=label)


def key(figure: Any, handles: Sequence[Any], columns: int = 0) -> None:
    """A legend above the panels, with as many columns as there are handles, or so many."""
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(handles), handletextpad=0.5)


def _compared(results: StudyResults, split: str) -> list[StudyRun]:
    return [
        run
        for run in results.find(kind=study.UNLEARNED, use=study.COMPARISON, split=split)
        if run.variant in {study.PLAIN, study.GRU}
    ]


def _along(
    results: StudyResults,
    split: str,
    wanted: Callable[[StudyRun], bool],
    draw: Callable[[Any, Sequence[StudyRun], str, str], None],
    label: str,
) -> Any:
    """A panel a method and score, in which ``draw(axis, runs, heading, color)`` draws the runs of a variant."""
    methods = by_method(_compared(results, split), wanted)
    if not methods:
        return None
    figure, grid = wrapped(len(methods), 2)
    headings = (results.retention, results.removal)
    for (title, runs), axes in zip(methods.items(), grid, strict=True):
        for axis, heading in zip(axes, headings, strict=True):
            for variant, members in by_variant(runs).items():
                draw(axis, members, heading, COLORS[variant])
            references(axis, results, split, heading)
        axes[0].set_title(title)
        axes[1].set_xlabel(label)
    for row, heading in enumerate(headings):
        _same_limits([axes[row] for axes in grid])
        for axes in grid[::PER_ROW]:
            axes[row].set_ylabel(heading)
    key(figure, [*_variants_of(methods), *reference_lines()])
    return figure


def _steps(axis: Any, series: Sequence[Series], color: str, style: str = "-") -> None:
    """Every seed faint, their mean strong; with one seed, it alone."""
    length = max(map(len, series), default=0)
    middle = _known([mean(values[i] for values in series if i < len(values)) for i in range(length)])
    for values in series if len(series) > 1 or length >= _MANY_STEPS else ():
        axis.plot(*_known(values), color=color, linestyle=style, **_SEED)
    x, y = middle
    y = smooth(y, max(2, len(y) // 40)) if length >= _MANY_STEPS else y
    axis.plot(x, y, color=color, linestyle=style, **_MEAN)


def _known(values: Series) -> tuple[list[int], list[float]]:
    """Step numbers, from 1, and values, without those that were not logged."""
    rows = [(i + 1, value) for i, value in enumerate(map(finite, values)) if value is not None]
    return [i for i, _ in rows], [value for _, value in rows]


def _epochs(axis: Any, runs: Sequence[StudyRun], heading: str, color: str) -> None:
    at: dict[float, list[float]] = {}
    for run in runs:
        points = [(point.epoch, finite(point.scores.get(heading))) for point in run.points]
        known = [(epoch, value) for epoch, value in points if value is not None]
        for epoch, value in known:
            at.setdefault(epoch, []).append(value)
        if len(runs) > 1:
            axis.plot([x for x, _ in known], [y for _, y in known], color=color, **_SEED)
    epochs = sorted(at)
    axis.plot(epochs, [math.fsum(at[x]) / len(at[x]) for x in epochs], color=color, marker="o", markersize=4, **_MEAN)


def _has_distances(run: StudyRun) -> bool:
    return sum(finite(point.moved) is not None for point in run.points) > 1


def _distances(axis: Any, runs: Sequence[StudyRun], heading: str, color: str) -> None:
    """A line a run: seeds move differently far."""
    for run in runs:
        points = [(finite(point.moved), finite(point.scores.get(heading))) for point in run.points]
        known = [(100 * x, y) for x, y in points if x is not None and y is not None]
        axis.plot([x for x, _ in known], [y for _, y in known], color=color, marker="o", markersize=4, linewidth=1.4)


def _one_scale(axes: Sequence[Any]) -> None:
    """The same scale in all, a log scale where the values are far apart."""
    if spread(axes) > WIDE:
        for axis in axes:
            axis.set_yscale("log")
    _same_limits(axes)


def _same_limits(axes: Sequence[Any]) -> None:
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_ylim(min(lows), max(highs))


def _variants_of(methods: Mapping[str, Sequence[StudyRun]]) -> list[Any]:
    variants = by_variant(run for runs in methods.values() for run in runs)
    return [line(NAMES[variant], COLORS[variant]) for variant in variants]
