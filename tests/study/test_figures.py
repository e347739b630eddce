"""Figures of a study: which are drawn, of which runs, in which colour, and where the arrows lead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex
from study_results import large, reference, run, small, study

from gru_fast.report.figures import REFERENCE
from gru_fast.study import curves, figures
from gru_fast.study.curves import COLORS
from gru_fast.study.results import (
    ABLATION,
    CLIPPED,
    FURTHER,
    GRU,
    ORIGINAL,
    PLAIN,
    SENSITIVITY,
    Calibrated,
    Point,
)  # fmt: skip

SPLIT = "forget05"


def lines(axis: Any, color: str, width: float | None = None) -> list[tuple[list[float], list[float]]]:
    """(x, y) of the lines of a colour; ``width``: of that width alone."""
    return [
        (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axis.get_lines()
        if to_hex(line.get_color()) == color and width in {None, line.get_linewidth()}
    ]


def dots(axis: Any, color: str, faint: bool) -> list[tuple[float, float]]:
    """The points of a colour: single runs, which are faint, or means."""
    return [
        tuple(map(float, xy))
        for marks in axis.collections
        if len(marks.get_facecolor()) and to_hex(marks.get_facecolor()[0]) == color
        if (marks.get_alpha() is not None) == faint
        for xy in marks.get_offsets()
    ]


def arrows(axis: Any) -> list[tuple[Any, Any]]:
    """(from, to) of each arrow."""
    return [(text.xyann, text.xy) for text in axis.texts if getattr(text, "arrow_patch", None) is not None]


def test_the_plane_has_means_seeds_and_arrows() -> None:
    """GA by hand: plain (0.375, -6.5), with GRU (0.5, -3.5); of NPO with GRU one run is left."""
    (axis,) = figures.plane(small(), SPLIT).axes
    assert dots(axis, COLORS[PLAIN], faint=False) == [(0.375, -6.5), (0.5625, -1.25)]
    assert dots(axis, COLORS[GRU], faint=False) == [(0.5, -3.5), (0.75, -2.0)]
    assert dots(axis, COLORS[PLAIN], faint=True) == [(0.25, -6.0), (0.5, -7.0), (0.5, -1.0), (0.625, -1.5)]
    assert dots(axis, COLORS[GRU], faint=True) == [(0.5, -4.0), (0.5, -3.0)]
    assert arrows(axis) == [((0.375, -6.5), (0.5, -3.5)), ((0.5625, -1.25), (0.75, -2.0))]
    assert axis.get_xlabel() == "MU: what is kept, higher is better"


def test_steps_are_those_of_the_runs_and_their_mean() -> None:
    def logged(seed: int, variant: str, *cosines: float) -> Any:
        steps = {"retain_loss": [1.0, 2.0], "cos": list(cosines)}
        return run("GA", 0.5, -1.0, seed=seed, variant=variant, steps=steps)

    runs = [logged(1, PLAIN, -1.0, -0.5), logged(2, PLAIN, 0.0, -0.25), logged(1, GRU, 0.25, None)]
    loss, cosine = curves.over_steps(study(runs), SPLIT).axes
    assert lines(cosine, COLORS[PLAIN], 2.0) == [([1, 2], [-0.5, -0.375])]
    assert lines(cosine, COLORS[PLAIN], 0.7) == [([1, 2], [-1.0, -0.5]), ([1, 2], [0.0, -0.25])]
    assert lines(cosine, COLORS[GRU]) == [([1], [0.25])]
    assert lines(loss, COLORS[GRU]) == [([1, 2], [1.0, 2.0])]


def test_angles_of_gru_are_those_before_and_after() -> None:
    steps = {"angle_before": [120.0, 60.0], "angle_after": [90.0, 60.0]}
    runs = [run("GA", 0.5, -1.0, variant=variant, steps=steps) for variant in (PLAIN, GRU)]
    (axis,) = curves.angles(study(runs), SPLIT).axes
    assert lines(axis, COLORS[PLAIN]) == [([1, 2], [120.0, 60.0])]
    assert lines(axis, COLORS[GRU]) == [([1, 2], [120.0, 60.0]), ([1, 2], [90.0, 60.0])]


def test_epochs() -> None:
    def along(seed: int, *utilities: float) -> Any:
        points = [Point(float(i), 10 * i, {"MU": mu, "FQ (ln p)": -mu}) for i, mu in enumerate(utilities)]
        return run("GA", 0.5, -1.0, seed=seed, points=points)

    retention, removal = curves.over_epochs(study([along(1, 0.75, 0.5), along(2, 0.25, 0.0)]), SPLIT).axes
    assert lines(retention, COLORS[PLAIN], 2.0) == [([0, 1], [0.5, 0.25])]
    assert lines(removal, COLORS[PLAIN], 2.0) == [([0, 1], [-0.5, -0.25])]


def test_distances() -> None:
    """A line a run, in percent; a point whose distance is not known is left out, and so is a run of one point."""

    def along(seed: int, *moved: float | None) -> Any:
        points = [Point(float(i), i, {"MU": 0.5 - i / 4, "FQ (ln p)": float(i)}, x) for i, x in enumerate(moved)]
        return run("GA", 0.5, -1.0, seed=seed, points=points)

    runs = [along(1, 0.0, 0.125, None), along(2, 0.0, 0.25, 0.5), along(3, 0.5)]
    retention, removal = curves.over_distance(study(runs), SPLIT).axes
    assert lines(retention, COLORS[PLAIN]) == [([0.0, 12.5], [0.5, 0.25]), ([0.0, 25.0, 50.0], [0.5, 0.25, 0.0])]
    assert lines(removal, COLORS[PLAIN]) == [([0.0, 12.5], [0.0, 1.0]), ([0.0, 25.0, 50.0], [0.0, 1.0, 2.0])]
    assert curves.over_distance(study([along(1, 0.5), along(2, None, None)]), SPLIT) is None


def test_changes_are_a_row_a_group_with_its_interval() -> None:
    """GA: MU +0.25 and 0; all three: 0.5 / 3. Of two seeds no mean is filled: they are too few to say."""
    retention, removal = figures.changes(small()).axes
    assert [label.get_text() for label in retention.get_yticklabels()] == ["GA forget05", "NPO forget05", "all"]
    assert lines(retention, COLORS[GRU]) == [([0.0, 0.25], [0, 0]), ([0.0, 0.25], [2, 2])]
    assert lines(removal, COLORS[GRU]) == [([2.0, 4.0], [0, 0]), ([0.5, 4.0], [2, 2])]
    assert dots(removal, COLORS[GRU], faint=False) == []
    assert dots(removal, COLORS[PLAIN], faint=False) == []
    hollow = [marks for marks in removal.collections if to_hex(marks.get_edgecolor()[0]) == COLORS[PLAIN]]
    assert [tuple(marks.get_offsets()[0]) for marks in hollow] == [(-1.0, 1)]  # NPO: worse, one seed


def test_a_mean_of_many_seeds_is_filled() -> None:
    runs = [run("GA", 0.5, fq, seed=n, variant=v) for n in range(6) for v, fq in ((PLAIN, -4.0), (GRU, -1.0))]
    _, removal = figures.changes(study(runs)).axes
    assert dots(removal, COLORS[GRU], faint=False)[0] == (3.0, 0)


def test_no_change_is_neither_better_nor_worse() -> None:
    results = study([run("GA", 0.5, -1.0, variant=variant) for variant in (PLAIN, GRU)])
    retention, _ = figures.changes(results).axes
    means = {to_hex(marks.get_edgecolor()[0]) for marks in retention.collections if marks.get_alpha() is None}
    assert means == {REFERENCE}


def test_sensitivity_holds_what_the_recipe_holds() -> None:
    settings = [(0.8, 0.1, 0.25), (0.8, 1.0, 0.5), (0.8, None, 0.75), (0.5, 1.0, 0.125)]
    runs = [run("GA", mu, -mu, variant=GRU, gamma=g, tau=t, uses=[SENSITIVITY]) for g, t, mu in settings]
    _, fq_tau, mu_gamma, mu_tau = figures.sensitivity(study(runs), SPLIT).axes
    first = "#0072b2"
    assert lines(mu_gamma, first) == [([0, 1], [0.125, 0.5])]
    assert lines(mu_tau, first) == [([0, 1, 2], [0.25, 0.5, 0.75])]
    assert lines(fq_tau, first) == [([0, 1, 2], [-0.25, -0.5, -0.75])]
    assert [label.get_text() for label in mu_tau.get_xticklabels()] == ["0.1", "1", "none"]
    assert figures.heatmap(study(runs), SPLIT) is None


def test_a_grid_is_a_heat_map() -> None:
    grid = [(g, t, g * t) for g in (0.5, 0.8) for t in (0.1, 1.0)]
    runs = [run("GA", mu, -3.0, variant=GRU, gamma=g, tau=t, uses=[SENSITIVITY]) for g, t, mu in grid]
    runs[3] = replace(runs[3], state="failed", scores={})
    removal, retention = figures.heatmap(study(runs), SPLIT).axes[:2]
    assert [text.get_text() for text in retention.texts] == ["0.05", "0.50", "0.08", "failed"]
    assert [text.get_text() for text in removal.texts] == ["-3.0", "-3.0", "-3.0", "failed"]


def test_ablation_and_calibration() -> None:
    done = [Calibrated(share, 0.5, {"FQ (ln p)": -10 * share}) for share in (0.85, 0.95)]
    scores = {PLAIN: 0.25, CLIPPED: 0.5, GRU: 0.75}
    results = study(
        [run("GA", mu, -1.0, variant=v, uses=[ABLATION, "comparison"], calibrated=done) for v, mu in scores.items()]
    )
    _, retention = figures.ablation(results, SPLIT).axes
    assert [lines(retention, COLORS[variant]) for variant in scores] == [
        [([x], [mu])] for x, mu in ((-0.22, 0.25), (0.0, 0.5), (0.22, 0.75))
    ]
    (axis,) = figures.calibration(results, SPLIT).axes
    assert lines(axis, COLORS[GRU]) == [([0.85, 0.95], [-8.5, -9.5])]


def test_paths_begin_at_the_original_and_go_through_every_evaluation() -> None:
    points = [Point(1, 1, {"MU": 0.6, "FQ (ln p)": -30.0}), Point(2, 2, {"MU": 0.2, "FQ (ln p)": -10.0})]
    own = replace(run("GA", 0.2, -10.0, variant="update", uses=[FURTHER]), points=points)
    results = study([reference(ORIGINAL, 0.8, -40.0), replace(run("GA", 0.2, -10.0), points=points), own])
    figure = curves.over_retention(results, SPLIT)
    (axis,) = figure.axes
    way = ([0.8, 0.6, 0.2], [-40.0, -30.0, -10.0])
    assert way in lines(axis, COLORS[PLAIN])
    assert way in lines(axis, curves.FURTHER[0])
    assert curves.over_retention(study([run("GA", 0.2, -10.0)]), SPLIT) is None


def test_a_line_for_each_number_of_rows_over_gamma() -> None:
    made = [
        replace(run("GA", mu, -3.0, variant=GRU, uses=["gamma and rows"]), gamma=gamma, retain_rows=rows)
        for gamma, rows, mu in ((0.1, 4, 0.5), (0.4, 4, 0.25), (0.1, 16, 0.75))
    ]
    _, below = figures.gamma_and_rows(study(made), SPLIT).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in below.get_lines()]
    assert drawn == [([0, 1], [0.5, 0.25]), ([0], [0.75])]


def test_what_has_no_data_is_not_drawn(tmp_path: Path) -> None:
    assert [path.name for path in figures.write(small(), tmp_path)] == [f"plane-{SPLIT}.png", "changes.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "changes.png", "changes.svg", f"plane-{SPLIT}.png", f"plane-{SPLIT}.svg",
    ]  # fmt: skip
    lost = [replace(each, state="failed", scores={}) for each in small().runs]
    assert figures.write(study(lost), tmp_path / "none") == []


def test_every_figure_is_drawn_of_a_study_that_has_everything(tmp_path: Path) -> None:
    """Five methods: the panels wrap, and none is lost."""
    results = large(("GA", "WGA", "GD", "NPO", "SimNPO"), seeds=1, steps=5)
    assert [path.stem for path in figures.write(replace(results, splits=[SPLIT]), tmp_path)] == [
        *(f"{name}-{SPLIT}" for name in ("steps", "plane", "epochs", "paths", "angles")),
        "changes",
        *(f"{name}-{SPLIT}" for name in ("sensitivity", "ablation", "calibration")),
    ]
    titles = [axis.get_title() for axis in curves.angles(results, SPLIT).axes]
    assert titles == ["GA", "WGA", "GD", "NPO", "SimNPO"]
