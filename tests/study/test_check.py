"""Which numbers come out again: equal to the last digit, or named with both values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from study_results import ENVIRONMENT, run, small, study

from gru_fast.cli import main
from gru_fast.study import check, results
from gru_fast.study.results import GRU, Attacked, Calibrated, Point


def test_the_same_study() -> None:
    """Eleven runs, one of them failed: two scores each."""
    found = check.compare(small(), small())
    assert found.is_same
    assert (len(found.again), sum(each.count for each in found.again)) == (9, 18)
    assert (found.missing, found.more, found.machine) == ((), (), ())
    assert check.said(found, "R") == [
        "9 runs are done here and in R: 9 with the same numbers to the last digit (18 of 18 numbers)"
    ]


def test_every_kind_of_number_counts() -> None:
    there = run(
        "GA", 0.5, -4.0, variant=GRU,
        points=[Point(1.0, 5, {"MU": 0.6})],
        calibrated=[Calibrated(0.9, 0.25, {"MU": 0.7})],
        attacked=[Attacked("relearn", None, 0.5, 0.1), Attacked("sample", 0.9, 0.2, None)],
    )  # fmt: skip
    here = replace(
        there,
        scores={"MU": 0.5000000000000001, "FQ (ln p)": -4.0},
        points=[Point(1.0, 5, {"MU": 0.625})],
        calibrated=[Calibrated(0.9, 0.5, {"MU": 0.75})],
        attacked=[Attacked("relearn", None, 0.25, 0.2), Attacked("sample", 0.9, None, None)],
    )
    (found,) = check.compare(study([here]), study([there])).again
    assert found.count == 9
    assert dict(found.others) == {
        "MU": (0.5000000000000001, 0.5),
        "MU after step 5": (0.625, 0.6),
        "alpha at 90%": (0.5, 0.25),
        "MU at 90%": (0.75, 0.7),
        "back by relearn": (0.25, 0.5),
        "back by relearn, retrained": (0.2, 0.1),
        "back by sample at 90%": (None, 0.2),
    }
    line = check.said(check.compare(study([here]), study([there])), "R")[1]
    assert line.startswith(f"  {here.name}: MU 0.5000000000000001, not 0.5; MU after step 5 0.625, not 0.6; ")
    assert line.endswith("; and 1 more")


def test_what_json_has_no_number_for_is_the_same_as_its_null(tmp_path: Path) -> None:
    """Of a run that has diverged: the study at hand has NaN, its results.json null."""
    here = study([run("GA", math.nan, -math.inf)])
    assert check.compare(here, results.read(results.write(here, tmp_path))).is_same


def test_what_is_there_alone_is_said() -> None:
    there = run("GA", 0.5, -4.0, calibrated=[Calibrated(0.9, 0.25, {"MU": 0.7})])
    found = check.compare(study([replace(there, calibrated=[])]), study([there]))
    assert found.again[0].missing == ("alpha at 90%", "MU at 90%")
    assert check.said(found, "R")[1] == f"  {there.name}: only there: 2 numbers (alpha at 90%, MU at 90%)"


def test_what_is_otherwise_is_named() -> None:
    there = run("GA", 0.5, -4.0, config={"gamma": 0.4, "model": "a"}, result={"rows": {"forget": {"hash": "ab"}}})
    here = replace(there, config={"gamma": 0.8, "model": "b"}, result={"rows": {"forget": {"hash": "cd"}}})
    new = {**ENVIRONMENT, "versions": {**ENVIRONMENT["versions"], "torch": "2.14.0"}, "threads": 2}
    more, missing = run("NPO", 0.5, -1.0), run("GD", 0.5, -1.0)
    found = check.compare(study([here, more], environment=new), study([there, missing]))
    assert found.again[0].settings == ("gamma 0.4, not 0.8", "rows.forget.hash 'ab', not 'cd'")
    assert (found.more, found.missing) == ((more.name,), (missing.name,))
    assert found.machine == ("versions.torch '2.13.0', not '2.14.0'", "threads 1, not 2")
    clipped = replace(there, config={"tau": 1.0}), replace(there, config={"tau": None})
    assert check.compare(*(study([each]) for each in clipped)).again[0].settings == ("tau None, not 1.0",)
    old = replace(there, result={})  # of a version that kept no hash
    assert check.compare(study([here]), study([old])).again[0].settings == ("gamma 0.4, not 0.8",)


def test_nothing_in_both_is_not_the_same() -> None:
    assert not check.compare(study([run("GA", 0.5, -4.0)]), study([run("NPO", 0.5, -4.0)])).is_same


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of results that are there; a number that differs is the exit status 1, and a wrong file is said in a line."""
    results.write(study([run("GA", 0.5, -4.0)]), tmp_path / "here")
    results.write(study([run("GA", 0.5, -4.5)]), tmp_path / "there")
    report = ["study", str(tmp_path / "here"), "--report", "--check"]
    assert main([*report, str(tmp_path / "here")]) == 0
    assert main([*report, str(tmp_path / "there" / "results.json")]) == 1
    assert "FQ (ln p) -4.0, not -4.5" in capsys.readouterr().out
    assert main([*report, str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
