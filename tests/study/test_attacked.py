"""The study's table of attacks: means over seeds, the lower of plain and GRU, the retrained model once a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import study_results

from gru_fast.runs.files import write_json
from gru_fast.study import collect, load, results
from gru_fast.study.attacked import attacks
from gru_fast.study.render import Score
from gru_fast.study.results import GRU, PLAIN, Attacked

# variant -> seed -> (quantize, sample, sample at 90% of utility)
BACK = {PLAIN: {1: (0.5, 0.2, 0.3), 2: (0.7, None, 0.5)}, GRU: {1: (0.2, 0.4, 0.1)}}


def study(split: str = "forget05") -> results.StudyResults:
    runs = []
    for variant, seeds in BACK.items():
        for seed, (quantize, sample, at_equal) in seeds.items():
            attacked = [
                Attacked("quantize", None, quantize, 0.1 * seed),
                Attacked("sample", None, sample, None),
                Attacked("sample", 0.9, at_equal, 0.0),
            ]
            runs.append(study_results.run("NPO", 0.5, -3.0, variant=variant, seed=seed, attacked=attacked))
    runs.append(study_results.run("NPO", None, None, variant=GRU, seed=2, state="failed"))
    runs.append(study_results.run("GA", 0.5, -3.0))
    return study_results.study(runs)


def test_means_over_seeds_and_the_lower_one() -> None:
    table = attacks(study(), "forget05")
    assert [column.heading for column in table.columns] == [
        "Method", "Variant", "quantize", "sample", "sample at 90%", "n",
    ]  # fmt: skip
    plain, gru, retrained = table.rows
    assert plain == ["NPO", "plain", Score((0.5, 0.7), 2), Score((0.2,), 2, True), Score((0.3, 0.5), 2), "2 of 2"]
    assert gru == ["NPO", "w/ GRU", Score((0.2,), 2, True), Score((0.4,), 2), Score((0.1,), 2, True), "1 of 2"]
    assert retrained[2:5] == [Score((0.1, 0.2), 2), Score((), 2), Score((0.0, 0.0), 2)]


def test_without_attacks_there_is_no_table() -> None:
    assert attacks(study_results.study([study_results.run("GA", 0.5, -3.0)]), "forget05").rows == []


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = study()
    assert [run.attacked for run in results.read(results.write(written, tmp_path)).runs] == [
        list(run.attacked) for run in written.runs
    ]


def test_what_came_back_is_read_from_the_folders(tmp_path: Path) -> None:
    recipe = load.make(
        {
            "splits": ["forget05"], "methods": ["ga"], "finetune": {}, "model": {"model": "base"},
            "calibration": {"shares": [0.9]}, "attacks": {"at": [0.9]},
        }
    )  # fmt: skip

    def save(folder: Path, attack: str, back: float) -> None:
        row: dict[str, Any] = {"is_knowledge": True, "back": back, "retained_back": back / 2}
        write_json(folder / "attacks" / "tofu-forget05" / attack / "summary.json", {"findings": [row]})

    save(tmp_path, "sample", 0.2)
    save(tmp_path, "quantize", 0.4)
    save(tmp_path / "calibration" / "target-0.9", "quantize", 0.8)
    assert list(collect.attacked(tmp_path, recipe)) == [
        Attacked("quantize", None, 0.4, 0.2),
        Attacked("sample", None, 0.2, 0.1),
        Attacked("quantize", 0.9, 0.8, 0.4),
    ]
