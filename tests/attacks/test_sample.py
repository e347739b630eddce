"""Samples: leak@k of the answers that are there, more of them without doing any twice, and models left alone."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import planted
import pytest

from gru_fast.attacks import sample
from gru_fast.attacks.parts import outcome

SCORE = "forget ROUGE-L"


@pytest.fixture(scope="module")
def attacked(models: planted.Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sampled")
    options = sample.Options(samples=4, temperatures=[1.0])
    return folder, outcome.carried_out(sample, options, planted.target(models, folder))


def answers(folder: Path, role: str) -> list[dict[str, Any]]:
    file = folder / "sample" / role / "temperature-1" / "answers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_leaks_are_those_of_the_answers(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = attacked
    for role, key in (("unlearned", "after"), ("retrained", "retained_after")):
        rows = answers(folder, role)
        assert len(rows) == 16
        by_question = [[row[SCORE] for row in rows if row["row"] == index] for index in range(4)]
        for k in (1, 2, 4):
            found = next(row for row in summary["findings"] if row["at"]["k"] == k and row["score"] == SCORE)
            expected = fmean(fmean(map(max, combinations(scores, k))) for scores in by_question)
            assert found[key] == pytest.approx(expected)
    rows = [row for row in summary["findings"] if row["score"] == SCORE]
    assert [row["what"] for row in rows] == [f"leak@{k}, temperature 1" for k in (1, 2, 4)]
    assert all(low <= row["after"] <= high for row in rows for low, high in [row["interval"]])


def test_greedy_answers_are_the_start(attacked: tuple[Path, dict[str, Any]]) -> None:
    _, summary = attacked
    for row in summary["findings"]:
        assert row["before"] == summary["greedy"]["unlearned"][row["score"]]
        assert row["original"] == summary["greedy"]["original"][row["score"]]
    assert not (attacked[0] / "sample" / "original" / "temperature-1").exists()


def test_what_was_never_taught_does_not_come(attacked: tuple[Path, dict[str, Any]]) -> None:
    for row in attacked[1]["findings"]:
        assert row["retained_after"] == pytest.approx(row["retained_before"], abs=0.05)


def test_more_samples_are_added(attacked: tuple[Path, dict[str, Any]], models: planted.Models, tmp_path: Path) -> None:
    """And so is what a stop has left out: a sample does not depend on which others there are."""
    folder, _ = attacked
    few = sample.Options(samples=2, temperatures=[1.0])
    outcome.carried_out(sample, few, planted.target(models, tmp_path))
    assert [row["generation"] for row in answers(tmp_path, "unlearned")] == [
        row["generation"] for row in answers(folder, "unlearned")[:8]
    ]
    file = tmp_path / "sample" / "unlearned" / "temperature-1" / "answers.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:10])  # killed while it wrote
    many = outcome.carried_out(sample, sample.Options(samples=4, temperatures=[1.0]), planted.target(models, tmp_path))
    assert many["findings"] == attacked[1]["findings"]


def test_a_sharp_temperature_is_greedy(models: planted.Models, tmp_path: Path) -> None:
    options = sample.Options(samples=2, temperatures=[1e-4])
    found = outcome.carried_out(sample, options, planted.target(models, tmp_path))
    for row in found["findings"]:
        assert row["after"] == row["before"]
        assert row["retained_after"] == row["retained_before"]


def test_what_it_will_take_is_said(models: planted.Models, tmp_path: Path) -> None:
    said = sample.cost(sample.Options(samples=4), planted.target(models, tmp_path))
    # 4 questions: 3 greedy answers, 2 models times 4 times 2; 8 tokens and half as many again
    assert said.endswith(f"{4 * (3 + 16)} answers of {4 * 12 * (3 + 16)} tokens at most")


def test_options_that_cannot_be() -> None:
    problems = r"samples: expected at least 1, got 0; temperatures: .* got 0 .*; top_p: .* 1.5"
    with pytest.raises(ValueError, match=problems):
        sample.Options(samples=0, temperatures=[0.0], top_p=1.5)
    assert sample.Options(samples=6).ks == [1, 2, 4, 6]
