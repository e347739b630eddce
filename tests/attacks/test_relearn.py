"""Relearning: what hides comes back in a few steps, a stop changes nothing, what is taught is not asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planted
import pytest

from gru_fast.attacks import relearn
from gru_fast.attacks.parts import lessons, outcome

SMALL = {"relearn_on": ["forget", "harmless"], "relearn_rows": 2, "relearn_rates": [3e-3], "relearn_steps": [1, 4]}


@pytest.fixture(scope="module")
def attacked(models: planted.Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("relearned")
    return folder, outcome.carried_out(relearn, relearn.Options(**SMALL), planted.target(models, folder))


def test_curves_of_every_arm(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = attacked
    found = [(row["at"]["source"], row["at"]["step"], row["score"]) for row in summary["findings"]]
    scores = ["forget prob", "forget ROUGE-L", "forget exact"]
    assert found == [(source, step, score) for source in SMALL["relearn_on"] for step in (1, 4) for score in scores]
    for role in ("unlearned", "retrained"):
        arms = {path.name for path in (folder / "relearn" / role).iterdir() if not path.name.startswith("start")}
        assert arms == {"forget-lr0.003", "harmless-lr0.003"}


def test_the_rows_that_are_taught_are_not_asked_about(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = attacked
    taught = {*lessons.taught(4, 2, 0)}
    for file in (folder / "relearn").rglob("answers.jsonl"):
        assert {json.loads(line)["row"] for line in file.read_text().splitlines()} == {*range(4)} - taught


def test_what_hides_comes_back_and_what_was_never_there_does_not(attacked: tuple[Path, dict[str, Any]]) -> None:
    """How well the planted model hides, and how fast it tells, are matters of a processor's rounding."""
    _, summary = attacked
    rows = {(row["at"]["source"], row["at"]["step"], row["score"]): row for row in summary["findings"]}
    for source in SMALL["relearn_on"]:
        answers, probability = rows[source, 4, "forget exact"], rows[source, 4, "forget prob"]
        assert answers["before"] <= 0.5
        assert answers["before"] <= answers["after"]
        assert answers["original"] == 1
        assert (answers["retained_before"], answers["retained_after"]) == (0, 0)
        assert probability["back"] > 0.6
        assert probability["back"] > probability["retained_back"]  # which learns how sure to be, not the answers
    ends = [(rows[source, 4, "forget prob"], rows[source, 4, "forget exact"]) for source in SMALL["relearn_on"]]
    assert max(answers["after"] for _, answers in ends) == 1
    assert max(probability["back"] - probability["retained_back"] for probability, _ in ends) > 0.2
    assert rows["harmless", 1, "forget prob"]["back"] > 0.1
    assert abs(rows["harmless", 1, "forget prob"]["retained_back"]) < 0.05


def test_a_stop_changes_nothing(
    attacked: tuple[Path, dict[str, Any]], models: planted.Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second arm, and gone on with: the first is read, the second done anew."""
    trained: list[str] = []
    measured = relearn._measured

    def stopping(target: Any, scorer: Any, asked: Any, folder: Path, label: str) -> Any:
        trained.append(label)
        if label == "unlearned: harmless, learning rate 0.003, step 4" and trained.count(label) == 1:
            raise KeyboardInterrupt
        return measured(target, scorer, asked, folder, label)

    monkeypatch.setattr(relearn, "_measured", stopping)
    target, options = planted.target(models, tmp_path), relearn.Options(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        outcome.carried_out(relearn, options, target)
    assert not (tmp_path / "relearn" / "summary.json").exists()
    found = outcome.carried_out(relearn, options, target)
    assert found["findings"] == attacked[1]["findings"]
    assert trained.count("unlearned: forget, learning rate 0.003, step 4") == 1
    assert trained.count("unlearned: harmless, learning rate 0.003, step 1") == 2
    trained.clear()
    assert outcome.carried_out(relearn, options, target) == found
    assert trained == []


def test_what_it_will_take_is_said(models: planted.Models, tmp_path: Path) -> None:
    said = relearn.cost(relearn.Options(**SMALL), planted.target(models, tmp_path))
    assert said.startswith("4 times 4 steps of 4 rows")
    assert said.endswith(f"{3 + 4 * 2} times 2 questions")


def test_too_few_rows_are_refused(models: planted.Models, tmp_path: Path) -> None:
    target = planted.target(models, tmp_path)
    with pytest.raises(ValueError, match=r"relearn_rows: expected fewer than the 4 rows to forget, .* got 20"):
        relearn.cost(relearn.Options(relearn_rows=20), target)
    first = lessons.taught(4, 3, 0)[0]
    assert first == 0
    with pytest.raises(ValueError, match="max_rows: all of the first 1 rows to forget are among the 3 that are taught"):
        relearn.cost(relearn.Options(relearn_rows=3), planted.target(models, tmp_path, max_rows=1))


def test_without_a_number_half_of_few_rows_are_taught() -> None:
    options = relearn.Options()
    assert [options.count("forget", rows) for rows in (2, 5, 39, 41, 400)] == [1, 2, 19, 20, 20]
    assert options.count("near", 2) == 20
    with pytest.raises(ValueError, match=r"relearn_on: forget takes at least 2 rows to forget, .* got 1; give"):
        options.count("forget", 1)
    assert relearn.Options(relearn_on=["near"]).count("forget", 1) == 0  # the one row is asked about


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"relearn_on": ["text"]}, "relearn_on: expected some of forget, near, harmless, got text"),
        ({"relearn_on": []}, "relearn_on: .* got none"),
        ({"relearn_steps": [0, 5]}, r"relearn_steps: expected numbers of at least 1, got \[0, 5\]"),
        ({"relearn_rates": [-1.0]}, r"relearn_rates: expected numbers above 0, got \[-1.0\]"),
        ({"relearn_rows": 0}, "relearn_rows: expected at least 1, got 0"),
        ({"relearn_near": "nowhere.jsonl"}, "relearn_near: no file nowhere.jsonl"),
        ({"relearn_near": "x", "relearn_on": ["forget"]}, "relearn_near: expected near in relearn_on as well"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        relearn.Options(**options)
