"""What runs are judged by: the scores that the benchmarks' evaluations name."""

from __future__ import annotations

from typing import Any

from gru_fast import benchmarks
from gru_fast.evaluation.judge import JUDGES, TOFU
from gru_fast.runs.records import DONE, Status
from gru_fast.sweep import results


def test_judges_name_scores_of_their_evaluation() -> None:
    for name, judge in JUDGES.items():
        plane = benchmarks.evaluation(name).PLANE
        assert {judge.utility, judge.quality} == {*plane}
        assert "higher is better" in plane[judge.utility]
        assert judge.lower == ("lower is better" in plane[judge.quality])


def test_a_quality_turned() -> None:
    assert (TOFU.better(-3.0), TOFU.best, TOFU.short) == (-3.0, "highest", "FQ")
    own = JUDGES["own"]
    assert (own.better(0.25), own.best, own.short) == (-0.25, "lowest", "ES forget")


def job(name: str, tau: float | None, spec: dict[str, Any], removed: float, kept: float) -> Status:
    return Status(
        name, spec | ({"tau": tau} if spec else {}), state=DONE, facts={"ES forget": removed, "Prob retain": kept}
    )


def test_of_own_documents_the_best_has_the_least_left() -> None:
    spec = {"method": "ga", "gamma": 0.5}
    rows = [
        job("original", None, {}, 0.9, 0.8),
        job("a", 1.0, spec, 0.3, 0.75),
        job("b", 2.0, spec, 0.2, 0.75),
        job("c", 3.0, spec, 0.0, 0.5),  # keeps too little
    ]
    found = results.collect({row.name: row for row in rows}, 0.9, JUDGES["own"])
    best = found.best("GA")
    assert best is not None
    assert (best.name, best.quality) == ("b", 0.2)
    text = results.markdown(found)
    assert "| method | gamma | tau | ES forget | Prob retain | done |" in text
    assert "Best: the lowest ES forget of the runs with Prob retain >= 0.7200, 90% of the original model's" in text
