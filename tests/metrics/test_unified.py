"""Logs for the unified framework: its formulas worked by hand, and read again as what was written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tofu_records import records

from gru_fast.cli import main
from gru_fast.metrics import muse, tofu
from gru_fast.metrics.logs import read_log, write_log
from gru_fast.metrics.records import Record, Records
from gru_fast.metrics.unified import unified_log, write_unified, write_unified_muse

EPS = 1e-10


def test_values_by_hand() -> None:
    row = Record(7, "Where?", "In Rome.", answer_loss=math.log(2), paraphrase_loss=math.log(4))
    row = replace(row, perturbed_losses=(math.log(8), math.log(32)), generation="In Oslo", rouge1_recall=0.5)
    log = unified_log({"forget": [replace(row, rougeL_recall=0.5)]})
    assert log["forget_Q_A_Prob"]["value_by_index"]["7"] == {"prob": pytest.approx(1 / 2), "avg_loss": math.log(2)}
    assert log["forget_Q_A_PARA_Prob"]["agg_value"] == pytest.approx(1 / 4)
    assert log["forget_Q_A_PERT_Prob"]["agg_value"] == pytest.approx((1 / 8 + 1 / 32) / 2)
    # The geometric mean of the wrong ones over the paraphrase, and whichever way it is nearer to 1.
    assert log["forget_truth_ratio"]["value_by_index"]["7"]["score"] == pytest.approx(4 / 16)
    assert log["forget_truth_ratio"]["agg_value"] == pytest.approx(1 / 4)
    assert log["forget_Q_A_ROUGE"]["value_by_index"]["7"] == {
        "rouge1_recall": 0.5,
        "rougeL_recall": 0.5,
        "rougeL_f1": pytest.approx(0.5),
        "input": "Where?",
        "ground_truth": "In Rome.",
        "generation": "In Oslo",
    }
    assert list(log) == sorted(log)
    assert "model_utility" not in log  # its evaluator would take a null for done
    assert "forget_quality" not in log


def test_its_formulas_with_1e_10_in_the_denominators() -> None:
    """Its arithmetic in numpy, on losses where it matters: a model that has collapsed."""
    found = {name: [replace(row, answer_loss=20.0 + row.index) for row in rows] for name, rows in records().items()}
    log = unified_log(found)
    answer = np.exp(-np.array([row.answer_loss for row in found["real_authors"]]))
    wrong = np.array([row.perturbed_losses for row in found["real_authors"]])
    assert log["ra_Q_A_Prob_normalised"]["agg_value"] == pytest.approx(
        np.mean(answer / (answer + np.exp(-wrong).sum(axis=1) + EPS)), rel=1e-12
    )
    ratios = np.exp(-wrong.mean(axis=1)) / (answer + EPS)
    kept = [log["wf_Truth_Ratio"]["value_by_index"][str(i)]["score"] for i in range(3)]
    theirs = [log["ra_Truth_Ratio"]["value_by_index"][str(i)]["score"] for i in range(3)]
    assert theirs == pytest.approx(ratios.tolist(), rel=1e-12)
    assert kept != theirs
    assert log["ra_Truth_Ratio"]["agg_value"] == pytest.approx(np.maximum(0, 1 - ratios).mean(), abs=1e-15)


def test_nine_numbers_make_its_model_utility() -> None:
    log = unified_log(records())
    names = [f"{s}_{what}" for s in ("ra", "wf") for what in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")]
    names += ["retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"]
    expected = 9 / sum(1 / log[name]["agg_value"] for name in names)
    assert log["model_utility"]["agg_value"] == pytest.approx(expected)
    assert log["model_utility"]["agg_value"] == pytest.approx(tofu.model_utility(records()), rel=1e-6)


def test_what_is_written_is_read_as_what_it_was(tmp_path: Path) -> None:
    write_unified(records(), tmp_path, quality=0.25)
    tokens = {"num_tokens": None, "paraphrase_num_tokens": None, "perturbed_num_tokens": None}  # not in its layout
    expected: Records = {name: [replace(row, **tokens) for row in rows] for name, rows in records().items()}
    assert read_log(tmp_path / "TOFU_EVAL.json") == expected
    assert read_log(tmp_path) == expected  # the folder will do
    summary = json.loads((tmp_path / "TOFU_SUMMARY.json").read_text())
    assert summary["forget_quality"] == 0.25
    assert all(isinstance(value, float) for value in summary.values())


def test_optional_metrics_are_numbers_without_rows() -> None:
    extra: dict[str, dict[str, float | None]] = {
        "extraction_strength": {"forget": 0.3, "retain": 0.4},
        "mia_min_k": {"auc": 0.75, "retained_auc": 0.5, "privleak": -50.0},
        "mia_loss": {"auc": 0.7, "retained_auc": None, "privleak": None},
        "gibberish": {"forget": 0.9, "retain": 0.9},
    }
    log = unified_log(records(), extra=extra)
    assert log["extraction_strength"] == {"agg_value": 0.3}
    assert log["mia_loss"]["agg_value"] == 0.7
    assert log["privleak"] == {"agg_value": -50.0}
    assert not [name for name in log if "gibberish" in name]
    assert "privleak" not in unified_log(records(), extra={"mia_min_k": {"auc": 0.75, "privleak": None}})


def test_muse_by_its_definitions(tmp_path: Path) -> None:
    rows = [
        muse.Generation(0, "It came", "on Monday morning", "on Mondays"),
        muse.Generation(1, "It left", "with salt", "with rope and salt"),
    ]
    extra: dict[str, dict[str, float | None]] = {
        "extraction_strength": {"verbmem_f": 0.3, "knowmem_f": 0.1, "knowmem_r": 0.2},
        "mia_min_k": {"auc": 0.75, "retained_auc": 0.5, "privleak": -50.0},
    }
    write_unified_muse({"verbmem_f": rows, "knowmem_r": rows[1:]}, tmp_path, extra)
    log = json.loads((tmp_path / "MUSE_EVAL.json").read_text())
    assert list(log) == [
        "extraction_strength", "forget_verbmem_ROUGE", "mia_min_k", "privleak", "retain_knowmem_ROUGE",
    ]  # fmt: skip
    first, second = log["forget_verbmem_ROUGE"]["value_by_index"].values()
    assert first["rougeL_f1"] == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))  # of stems
    assert second == {
        "rouge1_recall": 1.0,
        "rougeL_f1": pytest.approx(2 * 1 * (2 / 4) / (1 + 2 / 4)),
        "rougeL_recall": 1.0,
        "input": "It left",
        "ground_truth": "with salt",
        "generation": "with rope and salt",
    }
    assert log["forget_verbmem_ROUGE"]["agg_value"] == pytest.approx((first["rougeL_f1"] + second["rougeL_f1"]) / 2)
    assert json.loads((tmp_path / "MUSE_SUMMARY.json").read_text())["privleak"] == -50.0
    assert muse.read_retained(tmp_path).auc(0.4) == pytest.approx(0.25)  # the original code's convention


def test_a_log_of_some_metrics_becomes_one_of_some_metrics(tmp_path: Path) -> None:
    bare = {"forget": [Record(0, paraphrase_loss=1.0, perturbed_losses=(1.0, 2.0))]}
    assert list(unified_log(bare)) == ["forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "forget_truth_ratio"]
    with pytest.raises(ValueError, match="write_log: expected records with losses or generations, got none"):
        unified_log({"forget": [Record(0, "Where?")]})


def test_from_either_layout_to_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(records(), tmp_path / "original.json")
    to_unified = ["--from-logs", str(tmp_path / "original.json"), "--write-log", "open-unlearning"]
    assert main(["eval", "tofu", *to_unified, "--output-dir", str(tmp_path / "theirs")]) == 0
    back = ["--from-logs", str(tmp_path / "theirs"), "--write-log", "original", "--output-dir", str(tmp_path / "ours")]
    assert main(["eval", "tofu", *back, "--retain-logs", str(tmp_path / "original.json")]) == 0
    assert "p 1.0" in capsys.readouterr().out
    first, last = (json.loads(file.read_text()) for file in (tmp_path / "original.json", next(tmp_path.glob("ours/*"))))
    for name, columns in last.items():
        assert columns == {column: first[name][column] for column in columns}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--write-log", "openunlearning"],
            "--write-log: expected one of original, open-unlearning, got openunl",
        ),
        (["--write-log", "open-unlearning"], "output_dir: expected a folder to write the log to, got none; give"),
        (["--output-dir", "x"], "--output-dir: numbers of a log are only printed"),
        (
            ["--write-log", "original", "--output-dir", "x", "--model", "m"],
            "--model: numbers of a log are only printed",
        ),
    ],
)
def test_wrong_uses(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(records(), tmp_path / "log.json")
    assert main(["eval", "tofu", "--from-logs", str(tmp_path / "log.json"), *options]) == 1
    assert said in capsys.readouterr().err.replace("'", "").replace('"', "")
    assert [file.name for file in tmp_path.iterdir()] == ["log.json"]
