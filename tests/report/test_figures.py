"""Figures: which are drawn, with which series in which colour, and where the arrows lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from run_folders import evaluated, finetuned, steps_log, unlearned

from gru_fast.report import figures
from gru_fast.report.collect import Entry, collect
from gru_fast.report.figures import FORGET_PROBABILITY, GRU, PLAIN, REFERENCE, RETAIN_PROBABILITY
from gru_fast.runs.files import write_json

LOSS = {False: [0.5, 1.0, 2.0], True: [0.5, 0.625, 0.75]}
COS = {False: [-0.25, -0.5, -0.75], True: [-0.25, 0.5, -0.125]}
BEFORE = {False: [104.0, 120.0, 138.0], True: [104.0, 60.0, 97.0]}
AFTER = [90.0, 60.0, 90.0]
PATH = {False: ([0.9, 0.5, 0.1], [0.9, 0.4, 0.0]), True: ([0.9, 0.6, 0.2], [0.9, 0.8, 0.7])}
PLANE = {("ga", False): (0.25, -5.0), ("ga", True): (0.5, -4.0), ("npo", False): (0.125, -2.0), ("npo", True): None}


def save_runs(folder: Path) -> list[Entry]:
    """Original and retrained model, GA and NPO without and with GRU; the last one was not evaluated."""
    evaluated(finetuned(folder / "full"), 0.75, -20.0)
    evaluated(finetuned(folder / "retain95", "retain95"), 0.875, 0.0)
    for (method, rectify), plane in PLANE.items():
        series = {"retain_loss": LOSS[rectify], "cos": COS[rectify], "angle_before": BEFORE[rectify]}
        forget, retain = PATH[rectify]
        series |= {"angle_after": AFTER} if rectify else {}
        series |= {FORGET_PROBABILITY: forget, RETAIN_PROBABILITY: retain}
        run = unlearned(folder / f"{method}-{rectify}", method, rectify, steps_log(series))
        if plane:
            evaluated(run, *plane)
    return collect([folder])


def lines(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    """(x, y) of the runs' lines by colour."""
    found = {to_hex(line.get_color()): line for line in axis.get_lines()}
    return {c: (list(line.get_xdata()), list(line.get_ydata())) for c, line in found.items() if c in {PLAIN, GRU}}


def dots(axis: Any) -> list[tuple[str, bool, list[tuple[float, float]]]]:
    """(colour, whether filled, points) of what was scattered, in order."""
    return [
        (to_hex(marks.get_edgecolor()[0]), len(marks.get_facecolor()) > 0, [tuple(xy) for xy in marks.get_offsets()])
        for marks in axis.collections
    ]


def arrows(axis: Any) -> list[tuple[Any, Any]]:
    """(from, to) of each arrow."""
    return [(text.xyann, text.xy) for text in axis.texts if getattr(text, "arrow_patch", None) is not None]


def test_files(tmp_path: Path) -> None:
    entries = save_runs(tmp_path / "runs")
    written = figures.write(entries, tmp_path / "a" / "report")
    assert [file.name for file in written] == ["steps.png", "angles.png", "tradeoff.png", "path.png"]
    for file in written:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert "<svg" in file.with_suffix(".svg").read_text()
    svg = written[0].with_suffix(".svg")
    before = svg.read_bytes()
    figures.write(entries, tmp_path / "a" / "report")
    assert svg.read_bytes() == before  # same runs, same file


def test_steps(tmp_path: Path) -> None:
    figure = figures.over_steps(save_runs(tmp_path))
    assert [axis.get_title() for axis in figure.axes] == ["GA", "NPO", "", ""]
    for column in (0, 1):
        loss, cosine = figure.axes[column], figure.axes[2 + column]
        assert lines(loss) == {PLAIN: ([1, 2, 3], LOSS[False]), GRU: ([1, 2, 3], LOSS[True])}
        assert lines(cosine) == {PLAIN: ([1, 2, 3], COS[False]), GRU: ([1, 2, 3], COS[True])}
        assert cosine.get_ylim() == (-1.05, 1.05)
    assert figure.axes[0].get_yscale() == "linear"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["without GRU", "with GRU"]
    assert [line.get_color() for line in legend.get_lines()] == [PLAIN, GRU]


@pytest.mark.parametrize(("last", "scale"), [(15.0, "linear"), (15.5, "log")])
def test_a_loss_that_explodes_is_drawn_on_a_log_scale(tmp_path: Path, last: float, scale: str) -> None:
    unlearned(tmp_path / "a", log=steps_log({"retain_loss": [0.5, last]}))
    unlearned(tmp_path / "b", "npo", log=steps_log({"retain_loss": [0.5, 0.5]}))
    for entries in (collect([tmp_path]), collect([tmp_path])[::-1]):  # whichever column it stands in
        figure = figures.over_steps(entries)
        assert {axis.get_yscale() for axis in figure.axes[:2]} == {scale}


def test_many_steps_have_their_moving_average(tmp_path: Path) -> None:
    cos = [1.0 if step % 2 else -1.0 for step in range(100)]
    figure = figures.over_steps(collect([unlearned(tmp_path, log=steps_log({"cos": cos}))]))
    single, mean = (line for line in figure.axes[1].get_lines() if to_hex(line.get_color()) == PLAIN)
    assert list(single.get_ydata()) == cos
    assert single.get_linewidth() < mean.get_linewidth()
    first, _, *inner = mean.get_ydata()
    assert inner[:2] == [-0.2, 0.2]  # of -1, 1, -1, 1, -1, and the other way about
    assert first == pytest.approx(-1 / 3)  # at the ends, of those that there are


def test_angles(tmp_path: Path) -> None:
    figure = figures.angles(save_runs(tmp_path))
    at = [1.0, 2.0, 3.0]
    for axis in figure.axes:
        assert dots(axis)[-3:] == [
            (PLAIN, True, list(zip(at, BEFORE[False], strict=True))),
            (GRU, False, list(zip(at, BEFORE[True], strict=True))),
            (GRU, True, list(zip(at, AFTER, strict=True))),
        ]
        assert axis.get_ylim() == (0, 180)


def test_tradeoff(tmp_path: Path) -> None:
    (axis,) = figures.tradeoff(save_runs(tmp_path)).axes
    assert axis.get_title() == "TOFU forget05"
    assert axis.get_xlabel().startswith("MU: what is kept")
    assert axis.get_ylabel().startswith("FQ (ln p): how well it is removed")
    points = [(color, *where) for color, _, where in dots(axis)]
    assert points == [
        (REFERENCE, (0.75, -20.0)),
        (REFERENCE, (0.875, 0.0)),
        (PLAIN, (0.25, -5.0)),
        (GRU, (0.5, -4.0)),
        (PLAIN, (0.125, -2.0)),
    ]
    assert arrows(axis) == [((0.25, -5.0), (0.5, -4.0))]
    assert {text.get_text() for text in axis.texts} == {"", "original", "retrained"}


def test_tradeoff_has_a_panel_for_each_split(tmp_path: Path) -> None:
    for split in ("forget05", "forget10"):
        evaluated(unlearned(tmp_path / split, split=split), 0.5, -1.0, split)
    assert [axis.get_title() for axis in figures.tradeoff(collect([tmp_path])).axes] == [
        "TOFU forget05",
        "TOFU forget10",
    ]


def test_tradeoff_says_which_way_is_better(tmp_path: Path) -> None:
    run = unlearned(tmp_path, benchmark="wmdp")
    scores = {"benchmark": "wmdp", "accuracy": {"mmlu": 0.5, "wmdp_cyber": 0.25}}
    write_json(run / "eval" / "wmdp" / "summary.json", scores)
    (axis,) = figures.tradeoff(collect([tmp_path])).axes
    assert axis.get_ylabel() == "WMDP Cyber: what is left of it, lower is better"
    assert dots(axis) == [(PLAIN, True, [(0.5, 0.25)])]


def test_path(tmp_path: Path) -> None:
    figure = figures.paths(save_runs(tmp_path))
    for axis in figure.axes:
        assert lines(axis) == {PLAIN: PATH[False], GRU: PATH[True]}
        assert axis.get_xlim()[0] > axis.get_xlim()[1]  # removal to the right


def test_what_has_no_data_is_not_drawn(tmp_path: Path) -> None:
    full = evaluated(finetuned(tmp_path / "runs" / "full"), 0.5, -1.0)
    assert figures.write(collect([full]), tmp_path / "report") == []
    unlearned(tmp_path / "runs" / "ga", log=steps_log({"retain_loss": [1.0]}))
    assert [file.name for file in figures.write(collect([tmp_path / "runs"]), tmp_path / "report")] == ["steps.png"]
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["steps.png", "steps.svg"]


def test_a_run_with_two_evaluations_is_drawn_once(tmp_path: Path) -> None:
    run = unlearned(tmp_path, log=steps_log({"retain_loss": [1.0, 2.0]}))
    evaluated(evaluated(run, 0.5, -1.0), 0.5, -1.0, "forget10")
    figure = figures.over_steps(collect([run]))
    assert len(figure.axes[0].get_lines()) == 1


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"figures need matplotlib: pip install 'gru_fast\[unlearn\]'"):
        figures.write([], tmp_path / "report")
    assert not (tmp_path / "report").exists()
