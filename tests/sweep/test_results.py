"""Cells, the best one under a constraint, tables and heat maps, from hand-made jobs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from gru_fast.runs.records import DONE, FAILED, PRUNED, RUNNING, WAITING, Status
from gru_fast.sweep import figures, results


def job(name: str, gamma: float, tau: float | None, state: str = DONE, **scores: Any) -> Status:
    facts = {"FQ (ln p)": scores.get("fq"), "MU": scores.get("mu")} if state == DONE else {}
    spec = {"method": name.partition("-")[0], "gamma": gamma, "tau": tau}
    return Status(name, spec, (), state, facts=facts, reason=scores.get("reason", ""), log=f"{name}.log")


def collected(*jobs: Status, share: float = 0.9, original: float | None = 0.5) -> results.Results:
    facts = {} if original is None else {"FQ (ln p)": -30.0, "MU": original}
    start = Status("original", {}, (), DONE if facts else RUNNING, facts=facts)
    return results.collect({each.name: each for each in (start, *jobs)}, share)


GRID = (
    job("npo-1", 0.1, 1.0, fq=-5.0, mu=0.44),  # the best FQ, but below 0.9 * 0.5
    job("npo-2", 0.1, None, fq=-9.0, mu=0.45),  # exactly enough
    job("npo-3", 0.8, 1.0, fq=-9.0, mu=0.49),  # as good, and keeps more
    job("npo-4", 0.8, None, FAILED, reason="ValueError: no"),
    job("npo_gd-1", 0.1, 1.0, PRUNED, reason="out of reach"),
    job("npo_gd-2", 0.1, None, WAITING),
    job("npo_gd-3", 0.8, 1.0, fq=-12.0, mu=0.3),
    job("npo_gd-4", 0.8, None, fq=-7.5, mu=0.2),
)


def test_best_keeps_enough() -> None:
    found = collected(*GRID)
    assert found.least_utility == pytest.approx(0.45)
    best = found.best("NPO")
    assert best is not None
    assert best.name == "npo-3"
    assert found.best("NPO+GD") is None  # nothing keeps enough
    looser = collected(*GRID, share=0.88).best("NPO")
    assert looser is not None
    assert looser.name == "npo-1"


def test_best_is_unknown_while_the_original_is() -> None:
    found = collected(*GRID, original=None)
    assert (found.least_utility, found.best("NPO")) == (None, None)
    assert "MU >= unknown yet" in results.text(found)


def test_tables_in_the_papers_shape() -> None:
    text = results.markdown(collected(*GRID))
    lines = text.splitlines()
    assert "| Original |  |  | -30.0000 | 0.5000 |  |  |  |" in lines
    assert "| NPO | 0.8 | 1 | -9.0000 | 0.4900 | 3 of 4 | 0 | 1 |" in lines
    assert "| NPO+GD | - | - | - | - | 2 of 4 | 1 | 0 |" in lines
    over_tau = lines.index("## Over tau")
    assert lines[over_tau + 2 : over_tau + 8] == [
        "| method | gamma |  | 1 | none |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| NPO | 0.8 | FQ | -9.0000 | failed |",
        "| NPO | 0.8 | MU | 0.4900 | failed |",
        "| NPO+GD | 0.8 | FQ | -12.0000 | -7.5000 |",
        "| NPO+GD | 0.8 | MU | 0.3000 | 0.2000 |",
    ]
    over_gamma = lines.index("## Over gamma")
    assert lines[over_gamma + 2] == "| method | tau |  | 0.1 | 0.8 |"
    assert lines[over_gamma + 6 : over_gamma + 8] == [
        "| NPO+GD | 1 | FQ | pruned | -12.0000 |",
        "| NPO+GD | 1 | MU | pruned | 0.3000 |",
    ]
    assert "| 0.1 | -5.0000 / 0.4400 | -9.0000 / 0.4500 |" in lines
    assert "| 0.1 | pruned | - |" in lines
    assert lines[-2:] == ["- `npo-4` failed: ValueError: no", "- `npo_gd-1` pruned: out of reach"]


def test_slices_go_through_the_best_where_the_papers_values_are_not() -> None:
    jobs = [job(f"ga-{g}-{t}", g, t, fq=-g * t, mu=0.5) for g in (0.2, 0.4) for t in (2.0, 3.0)]
    lines = results.markdown(collected(*jobs)).splitlines()
    assert "| GA | 0.2 | FQ | -0.4000 | -0.6000 |" in lines
    assert "| GA | 2 | FQ | -0.4000 | -0.8000 |" in lines


def test_every_run_is_in_the_csv_unrounded() -> None:
    rows = list(csv.DictReader(results.comma_separated(collected(*GRID)).splitlines()))
    assert [row["run"] for row in rows] == [each.name for each in GRID]
    assert [row["state"] for row in rows[2:5]] == ["done", "failed", "pruned"]
    assert (rows[1]["tau"], rows[1]["MU"], rows[1]["keeps_enough"]) == ("none", "0.45", "True")
    assert rows[3]["note"] == "ValueError: no"


def test_drawn_points_are_listed() -> None:
    jobs = [job(f"ga-tpe{i}", 0.1 * i, 10.0**i, fq=-float(i), mu=0.5) for i in range(1, 4)]
    waiting = Status("ga-tpe9", {"method": "ga"}, (), WAITING)
    text = results.markdown(collected(*jobs, waiting))
    assert "| ga-tpe2 | 0.2 | 100 | -2.0000 | 0.5000 |" in text
    assert "| ga-tpe9 | - | - | - | - |" in text
    assert "Over tau" not in text


@pytest.mark.parametrize("count", [1, 4])
def test_points_that_are_still_to_be_drawn_are_no_grid(tmp_path: Path, count: int) -> None:
    """Four runs of which one is drawn have two gammas and two taus, counting what is not known yet."""
    drawn = [job("ga-tpe0", 0.3, 10.0, fq=-2.0, mu=0.5)] if count > 1 else []
    waiting = [Status(f"ga-tpe{i}", {"method": "ga"}, (), WAITING) for i in range(len(drawn), count)]
    found = collected(*drawn, *waiting)
    assert f"| ga-tpe{count - 1} | - | - | - | - |" in results.markdown(found)
    row = list(csv.DictReader(results.comma_separated(found).splitlines()))[-1]
    assert (row["gamma"], row["tau"], row["state"]) == ("", "", "waiting")
    assert len(figures.write(found, tmp_path)) == len(drawn)


def test_heat_maps(tmp_path: Path) -> None:
    files = figures.write(collected(*GRID), tmp_path)
    assert [file.name for file in files] == ["heatmap-npo.png", "heatmap-npo-gd.png"]
    svg = (tmp_path / "heatmap-npo.svg").read_text()
    for expected in (">-9.0<", ">0.49<", ">failed<", ">none<", "tau: largest norm"):
        assert expected in svg
    assert ">pruned<" in (tmp_path / "heatmap-npo-gd.svg").read_text()


def test_heat_map_of_drawn_points_and_of_none(tmp_path: Path) -> None:
    jobs = [job(f"ga-tpe{i}", 0.1 * i, 10.0**i, fq=-float(i), mu=0.5) for i in range(1, 4)]
    assert len(figures.write(collected(*jobs), tmp_path)) == 1
    assert figures.write(collected(job("ga-1", 0.1, 1.0, WAITING)), tmp_path) == []
