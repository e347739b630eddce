"""Figures of a study, PNG and SVG. What they show over time is in curves.py.

steps-SPLIT          retain loss and cosine over steps (the paper's Figure 1)
plane-SPLIT          removal against retention, an arrow from each method to itself with GRU (4)
epochs-SPLIT         retention and removal along the epochs (5, 6)
distance-SPLIT       the same over how far the weights have moved
paths-SPLIT          removal over what is still kept, from the original on
angles-SPLIT         angle to the retain gradient before and after rectification (7)
changes              what GRU changes, with intervals, a row a method and split
sensitivity-SPLIT    both scores over gamma and over tau
gamma-and-rows-SPLIT both scores over gamma, with more and fewer rows to keep a batch
heatmap-SPLIT        both scores over gamma and tau, where the recipe has a grid of them
ablation-SPLIT       plain, clipping only, with GRU
calibration-SPLIT    removal at equal retention
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.report.figures import (
    GRU,
    PLAIN,
    REFERENCE,
    arrow,
    panels,
    require,
    save,
    style,
)
from gru_fast.study import results as study
from gru_fast.study.curves import (
    COLORS,
    LEGEND_COLUMNS,
    NAMES,
    PALETTE,
    angles,
    by_variant,
    key,
    line,
    mark,
    over_distance,
    over_epochs,
    over_retention,
    over_steps,
    reference_lines,
    references,
    wrapped,
)
from gru_fast.study.render import last_if_none, setting
from gru_fast.study.results import StudyResults, StudyRun
from gru_fast.study.statistics import Change, Group, by_method, finite, group, groups, mean, score_of

_VECTOR = "#cc79a7"
_MAP = "viridis"  # told apart by the colour-blind, and in grey
_MARKS = "osD^vX<>hdpP"

Point = tuple[float, float]


def write(results: StudyResults, folder: Path) -> list[Path]:
    """Draws what there is something for, in the order above; returns the PNG files. Each has an SVG beside it.

    Raises:
        ModuleNotFoundError: no matplotlib.
    """
    require()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, draw in _FIGURES.items():
        for split in results.splits if name != "changes" else [""]:
            with style():
                figure = draw(results, split)
                if figure is not None:
                    found.append(save(figure, folder, f"{name}-{split}" if split else name))
    return found


# ---- removal against retention ---------------------------------------------------------------------------------------


def plane(results: StudyResults, split: str) -> Any:
    """Retention (x) and removal (y): means solid, seeds faint, an arrow from plain to GRU; task vectors by strength."""
    methods = by_method(results.find(kind=study.UNLEARNED, use=study.COMPARISON, split=split))
    vectors = by_method(results.find(kind=study.VECTOR, split=split))
    if not any(_points(results, runs) for runs in [*methods.values(), *vectors.values()]):
        return None
    figure, axes = panels(1, 1, width=6.2, height=4.3)
    axis = axes[0, 0]
    marks = dict(zip([*methods, *vectors], _MARKS * len([*methods, *vectors]), strict=False))
    for title, runs in methods.items():
        ends = {}
        for variant, members in by_variant(runs).items():
            ends[variant] = _cloud(axis, results, members, marks[title], COLORS[variant])
        if ends.get(study.PLAIN) and ends.get(study.GRU):
            arrow(axis, ends[study.PLAIN], ends[study.GRU])
    for title, runs in vectors.items():
        strengths = sorted({run.strength or 0.0 for run in runs})
        path = [
            _cloud(axis, results, [run for run in runs if (run.strength or 0.0) == strength], marks[title], _VECTOR)
            for strength in strengths
        ]
        known = [point for point in path if point]
        axis.plot([x for x, _ in known], [y for _, y in known], color=_VECTOR, linewidth=1.0, zorder=2)
    for kind, sign in ((study.ORIGINAL, "8"), (study.RETRAINED, "*")):
        _labelled(axis, results, split, kind, sign)
    axis.set_xlabel(f"{results.retention}: {results.plane[results.retention]}")
    axis.set_ylabel(f"{results.removal}: {results.plane[results.removal]}")
    axis.set_title(f"{results.benchmark.upper()} {split}")
    axis.margins(0.08, 0.1)
    handles = [mark(title, "#999999", sign) for title, sign in marks.items()]
    handles += [mark(NAMES[variant], COLORS[variant], "s") for variant in (study.PLAIN, study.GRU)] if methods else []
    key(figure, [*handles, *([mark("task vectors", _VECTOR, "s")] if vectors else [])], LEGEND_COLUMNS)
    return figure


def _cloud(axis: Any, results: StudyResults, runs: Sequence[StudyRun], sign: str, color: str) -> Point | None:
    """The runs, and their mean, which is returned."""
    points = _points(results, runs)
    if not points:
        return None
    if len(points) > 1:
        axis.scatter(*zip(*points, strict=True), s=16, marker=sign, color=color, alpha=0.3, linewidths=0, zorder=2)
    middle = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
    axis.scatter(*middle, s=75, marker=sign, color=color, edgecolors="white", linewidths=0.6, zorder=4)
    return middle


def _points(results: StudyResults, runs: Iterable[StudyRun]) -> list[Point]:
    """(retention, removal) of those that have both."""
    both = ((score_of(run, results.retention), score_of(run, results.removal)) for run in runs)
    return [(x, y) for x, y in both if x is not None and y is not None]


def _labelled(axis: Any, results: StudyResults, split: str, kind: str, sign: str) -> None:
    points = _points(results, results.find(kind=kind, split=split))
    for x, y in points:
        axis.scatter(x, y, s=100, marker=sign, color=REFERENCE, zorder=3)
    if points:
        where = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 8.5}
        axis.annotate(kind, points[0], **where, color=REFERENCE)


# ---- over settings ---------------------------------------------------------------------------------------------------


def sensitivity(results: StudyResults, split: str) -> Any:
    """Both scores over gamma (left) and tau (right), the other as in the comparison; a line a method."""
    methods = by_method(results.find(kind=study.UNLEARNED, variant=study.GRU, use=study.SENSITIVITY, split=split))
    lines = {
        name: {title: _varied(runs, name, other) for title, runs in methods.items()}
        for name, other in (("gamma", "tau"), ("tau", "gamma"))
    }
    drawn = [name for name, found in lines.items() if any(found.values())]
    if not drawn:
        return None
    figure, axes = panels(2, len(drawn), width=4.0, height=2.5, sharey="row", sharex="col")
    colors, headings = _palette(methods), (results.removal, results.retention)
    for column, name in enumerate(drawn):
        found = lines[name]
        values = sorted({getattr(run, name) for runs in found.values() for run in runs}, key=last_if_none)
        for row, heading in enumerate(headings):
            for title, runs in found.items():
                _over_values(axes[row, column], runs, name, values, heading, colors[title])
            axes[row, 0].set_ylabel(heading)
        axes[1, column].set_xticks(range(len(values)), [setting(value) for value in values])
        axes[1, column].set_xlabel(name)
    key(figure, [mark(title, color, sign) for title, (color, sign) in colors.items()], LEGEND_COLUMNS)
    return figure


def heatmap(results: StudyResults, split: str) -> Any:
    """Both scores over gamma (y) and tau (x), mean over seeds; a row a method whose runs are a full grid."""
    methods = by_method(results.find(kind=study.UNLEARNED, variant=study.GRU, use=study.SENSITIVITY, split=split))
    grids = {title: grid for title, runs in methods.items() if (grid := _grid(runs))}
    if not grids:
        return None
    figure, axes = panels(len(grids), 2, width=4.2, height=2.6)
    for row, (title, (gammas, taus, cells)) in enumerate(grids.items()):
        for column, heading in enumerate((results.removal, results.retention)):
            axis = axes[row, column]
            values = [[mean(score_of(run, heading) for run in cells[gamma, tau]) for tau in taus] for gamma in gammas]
            _heat(figure, axis, values)
            axis.set_title(f"{title}: {heading}")
            axis.set_xticks(range(len(taus)), [setting(tau) for tau in taus])
            axis.set_yticks(range(len(gammas)), [setting(gamma) for gamma in gammas])
            axis.set_xlabel("tau")
            axis.set_ylabel("gamma")
    return figure


def gamma_and_rows(results: StudyResults, split: str) -> Any:
    """Both scores over gamma (x), a line for each number of rows to keep a batch; methods beside each other."""
    methods = by_method(results.find(kind=study.UNLEARNED, use=study.GAMMA_AND_ROWS, split=split))
    if not methods:
        return None
    every = [run for runs in methods.values() for run in runs]
    gammas = sorted({run.gamma for run in every if run.gamma is not None})
    sizes = sorted({run.retain_rows or 0 for run in every})
    looks = _palette(f"{size} rows to keep" for size in sizes)
    figure, grid = wrapped(len(methods), 2)
    for (title, runs), axes in zip(methods.items(), grid, strict=True):
        for axis, heading in zip(axes, (results.removal, results.retention), strict=True):
            for size, look in zip(sizes, looks.values(), strict=True):
                chosen = [run for run in runs if (run.retain_rows or 0) == size]
                _over_values(axis, chosen, "gamma", gammas, heading, look)
            axis.set_xticks(range(len(gammas)), [setting(gamma) for gamma in gammas])
            axis.set_ylabel(heading)
        axes[0].set_title(title)
        axes[1].set_xlabel("gamma")
    key(figure, [mark(name, color, sign) for name, (color, sign) in looks.items()], LEGEND_COLUMNS)
    return figure


def _varied(runs: Sequence[StudyRun], name: str, held: str) -> list[StudyRun]:
    """The runs that differ in ``name`` at the value of ``held`` that has most values of it; empty if none has two."""
    at: dict[float | None, list[StudyRun]] = {}
    for run in runs:
        at.setdefault(getattr(run, held), []).append(run)
    counts = {value: len({getattr(run, name) for run in members}) for value, members in at.items()}
    # The setting of the comparison decides between equals: it is what the paper holds.
    best = max(
        at, key=lambda value: (counts[value], any(study.COMPARISON in run.uses for run in at[value])), default=None
    )
    return at[best] if at and counts[best] > 1 else []


def _over_values(
    axis: Any, runs: Sequence[StudyRun], name: str, values: Sequence[float | None], heading: str, look: tuple[str, str]
) -> None:
    """Means joined, seeds faint."""
    color, sign = look
    means = []
    for x, value in enumerate(values):
        known = [score_of(run, heading) for run in runs if getattr(run, name) == value]
        known = [score for score in known if score is not None]
        if len(known) > 1:
            axis.scatter([x] * len(known), known, s=12, color=color, alpha=0.3, linewidths=0)
        if known:
            means.append((x, sum(score or 0.0 for score in known) / len(known)))
    axis.plot([x for x, _ in means], [y for _, y in means], color=color, marker=sign, markersize=5, linewidth=1.6)


def _grid(runs: Sequence[StudyRun]) -> tuple[list[Any], list[Any], dict[tuple[Any, Any], list[StudyRun]]] | None:
    gammas = sorted({run.gamma for run in runs}, key=last_if_none)
    taus = sorted({run.tau for run in runs}, key=last_if_none)
    cells: dict[tuple[Any, Any], list[StudyRun]] = {(gamma, tau): [] for gamma in gammas for tau in taus}
    for run in runs:
        cells[run.gamma, run.tau].append(run)
    return (gammas, taus, cells) if len(gammas) > 1 and len(taus) > 1 and all(cells.values()) else None


def _heat(figure: Any, axis: Any, values: Sequence[Sequence[float | None]]) -> None:
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    axis.grid(visible=False)
    image = axis.imshow(numbers, origin="lower", aspect="auto", cmap=_MAP)
    figure.colorbar(image, ax=axis, shrink=0.85)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            shown = "failed" if value is None else f"{value:.1f}" if abs(value) > 1.5 else f"{value:.2f}"
            is_dark = value is not None and image.norm(value) < 0.6
            axis.text(x, y, shown, ha="center", va="center", fontsize=7, color="white" if is_dark else "black")


# ---- ablation, calibration, changes ----------------------------------------------------------------------------------


def ablation(results: StudyResults, split: str) -> Any:
    """Both scores plain, with clipping only, with GRU: seeds faint, means solid; methods beside each other."""
    methods = by_method(results.find(kind=study.UNLEARNED, use=study.ABLATION, split=split))
    if not methods:
        return None
    figure, axes = panels(2, 1, width=max(5.0, 1.1 * len(methods) + 1), height=2.3, sharex=True)
    for axis, heading in zip(axes[:, 0], (results.removal, results.retention), strict=True):
        for x, runs in enumerate(methods.values()):
            for variant, members in by_variant(runs).items():
                place = x + 0.22 * (list(COLORS).index(variant) - 1)
                known = [score for score in (score_of(run, heading) for run in members) if score is not None]
                axis.scatter([place] * len(known), known, s=14, color=COLORS[variant], alpha=0.35, linewidths=0)
                if known:
                    axis.plot(place, sum(known) / len(known), "_", color=COLORS[variant], markersize=14, mew=3)
        references(axis, results, split, heading)
        axis.set_ylabel(heading)
        axis.grid(visible=False, axis="x")
    axes[1, 0].set_xticks(range(len(methods)), list(methods))
    axes[1, 0].set_xlim(-0.6, len(methods) - 0.4)
    variants = by_variant(run for runs in methods.values() for run in runs)
    key(figure, [*(mark(NAMES[variant], COLORS[variant], "s") for variant in variants), *reference_lines()])
    return figure


def calibration(results: StudyResults, split: str) -> Any:
    """Removal (y) where each run keeps a share of the original's retention (x); a panel a method."""
    runs = results.find(kind=study.UNLEARNED, use=study.COMPARISON, split=split)
    methods = by_method(runs, lambda run: bool(run.calibrated))
    if not methods:
        return None
    figure, grid = wrapped(len(methods), 1, height=2.6)
    for (title, members), (axis,) in zip(methods.items(), grid, strict=True):
        for variant, chosen in by_variant(members).items():
            at: dict[float, list[float]] = {}
            for each in (each for run in chosen for each in run.calibrated):
                score = finite(each.scores.get(results.removal))
                if score is not None:
                    at.setdefault(each.target, []).append(score)
            for target, scores in at.items():
                axis.scatter([target] * len(scores), scores, s=14, color=COLORS[variant], alpha=0.35, linewidths=0)
            means = [(target, sum(at[target]) / len(at[target])) for target in sorted(at)]
            axis.plot([x for x, _ in means], [y for _, y in means], color=COLORS[variant], marker="o", linewidth=1.8)
        targets = sorted({each.target for run in members for each in run.calibrated})
        axis.set_xticks(targets, [f"{target:.0%}" for target in targets])
        axis.set_title(title)
        axis.set_xlabel(f"kept of the original's {results.retention}")
    limits = [axis.get_ylim() for (axis,) in grid]
    for i, (axis,) in enumerate(grid):
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        if i % 4 == 0:
            axis.set_ylabel(results.removal)
    key(figure, [line(NAMES[variant], COLORS[variant]) for variant in (study.PLAIN, study.GRU)])
    return figure


def changes(results: StudyResults, split: str = "") -> Any:
    """A forest: mean change by GRU with its interval, + is better; a row a method and split, and one of all."""
    found = [each for each in groups(results) if each.known and (not split or each.split == split)]
    if not found:
        return None
    rows = [*found, group([pair for each in found for pair in each.pairs], "all")]
    figure, axes = panels(1, 2, width=3.4, height=0.27 * len(rows) + 0.7, sharey=True)
    for axis, name in zip(axes[0], ("retention", "removal"), strict=True):
        axis.axvline(0, color=REFERENCE, linewidth=0.9)
        for y, each in enumerate(rows):
            _bar(axis, y, each, name)
        axis.set_xlabel(f"change of {getattr(results, name)} by GRU, + is better")
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(range(len(rows)), [f"{each.method} {each.split}".strip() for each in rows])
    axes[0, 0].get_yticklabels()[-1].set_fontweight("bold")
    handles = [mark("better", GRU, "D"), mark("worse", PLAIN, "D"), mark("not clear", REFERENCE, "D", "white")]
    key(figure, [*handles, mark("a pair", "#aaaaaa", "o")])
    return figure


def _bar(axis: Any, y: int, each: Group, name: str) -> None:
    change: Change = getattr(each, name)
    if change.mean is None:
        return
    values = [value for value in (getattr(pair, name) for pair in each.pairs) if value is not None]
    color = GRU if change.mean > 0 else PLAIN if change.mean < 0 else REFERENCE
    axis.scatter(values, [y + 0.26] * len(values), s=12, color="#aaaaaa", alpha=0.6, linewidths=0, zorder=2)
    if change.low is not None:
        axis.plot([change.low, change.high], [y, y], color=color, linewidth=2.2, solid_capstyle="butt", zorder=3)
    face = color if change.is_clear else "white"
    axis.scatter(change.mean, y, s=42, marker="D", facecolors=face, edgecolors=color, linewidths=1.5, zorder=4)


def _palette(titles: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """A colour and a marker for each."""
    return {title: (PALETTE[i % len(PALETTE)], _MARKS[i % len(_MARKS)]) for i, title in enumerate(titles)}


_FIGURES: dict[str, Callable[[StudyResults, str], Any]] = {
    "steps": over_steps,
    "plane": plane,
    "epochs": over_epochs,
    "distance": over_distance,
    "paths": over_retention,
    "angles": angles,
    "changes": changes,
    "sensitivity": sensitivity,
    "gamma-and-rows": gamma_and_rows,
    "heatmap": heatmap,
    "ablation": ablation,
    "calibration": calibration,
}
