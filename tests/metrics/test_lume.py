"""LUME's scores by hand."""

from __future__ import annotations

from typing import Any

import pytest

from gru_fast.metrics import lume


def row(task: str, kind: str, output: str, generation: str) -> dict[str, Any]:
    return {"task": task, "kind": kind, "output": output, "generation": generation}


def test_a_row() -> None:
    assert lume.score(row("Task1", "knowledge", "Madera", " madera\n")) == 1
    assert lume.score(row("Task1", "knowledge", "Madera", "Madera.")) == 0  # to the letter
    assert lume.score(row("Task1", "regurgitation", "the old cats sat down", "cat sat")) == pytest.approx(2 / 5)


def test_twelve_scores_are_one() -> None:
    forget, retain = [], []
    for task in ("Task1", "Task2", "Task3"):
        forget += [row(task, "regurgitation", "a b c d", "a b"), row(task, "knowledge", "yes", "no")]
        retain += [row(task, "regurgitation", "a b c d", "a b c d"), row(task, "knowledge", "yes", "yes")]
    retain.append(row("Task3", "knowledge", "yes", "no"))
    scores = [lume.by_task(rows) for rows in (forget, retain)]
    assert list(scores[0]) == ["all", "Task1", "Task2", "Task3"]
    assert scores[0]["Task2"] == {"regurgitation": 0.5, "knowledge": 0.0}
    assert scores[1]["all"] == {"regurgitation": 1.0, "knowledge": pytest.approx(3 / 4)}
    # 1/2 thrice, 1 thrice; 1 five times, 1/2 once
    assert lume.task_aggregate(*scores) == pytest.approx(12 / (3 * 2 + 3 + 5 + 2))
    assert lume.task_aggregate(scores[1], scores[1]) == 0  # what is wholly known is not forgotten


def test_membership_and_the_final_score() -> None:
    members, others = [{"loss": 1.0}, {"loss": 2.0}], [{"loss": 2.0}, {"loss": 3.0}]
    assert lume.mia_auc(members, others) == 7 / 8
    assert lume.mia_auc(others, members) == 1 / 8
    assert lume.mia_score(7 / 8) == lume.mia_score(1 / 8) == 0.25
    assert lume.final_score(0.6, 0.3, 0.45) == pytest.approx(0.45)
    assert lume.final_score(0.6, None, 0.45) is None
    assert lume.final_score(0.6, 0.3, None) is None
