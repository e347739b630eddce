"""The commands one after another, as a user runs them: finetune twice, unlearn, eval, report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tofu_folders import save_data, save_model

from gru_fast.cli import main
from gru_fast.runs.folder import read_run

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).parents[2].parent / "shared"))
TRAINING = ("--use-cpu", "--disable-tqdm", "--save-strategy", "no", "--gradient-accumulation-steps", 1)


def gru_fast(*argv: Any) -> None:
    assert main([str(text) for text in argv]) == 0


def run_all(model: Path, data: Path, runs: Path, steps: int, rate: str) -> None:
    """Two fine-tunings, two unlearnings, their evaluations and the report, in ``runs``."""
    training = (*TRAINING, "--data", data, "--max-steps", steps, "--learning-rate", rate)
    for subset in ("full", "retain95"):
        gru_fast("finetune", "--model", model, "--subset", subset, *training, "--output-dir", runs / subset)
    small = ("--max-length", 48, "--max-rows", 4)
    gru_fast("eval", "tofu", "--model", runs / "retain95", "--split", "forget05", *small)
    for name, flags in (("npo", ["--monitor"]), ("npo-gru", ["--rectify", "--tau", 1])):
        output = ("--output-dir", runs / name)
        gru_fast("unlearn", "--model", runs / "full", "--method", "npo", *flags, *training, *output)
        gru_fast("eval", "tofu", "--model", runs / name, "--retain-logs", runs / "retain95", *small)
    gru_fast("report", runs, "--output", runs / "report", "--format", "md")


def check(runs: Path, printed: str) -> None:
    for name in ("npo", "npo-gru"):
        summary = read_run(runs / name).evaluations["tofu-forget05"]
        assert 0 <= summary["model_utility"] <= 1
        assert summary["forget_quality"]["log_p"] <= 0
    table = (runs / "report" / "table.md").read_text()
    assert table.strip() in printed
    assert "NPO" in table
    for name in ("table.csv", "steps.png", "angles.png", "tradeoff.png"):
        assert (runs / "report" / name).is_file()


def test_a_small_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = save_data(tmp_path / "data"), save_model(tmp_path / "model")
    run_all(model, data, tmp_path / "runs", 3, "0.01")
    check(tmp_path / "runs", capsys.readouterr().out)


@pytest.mark.skipif(not (SHARED / "tofu").is_dir(), reason=f"no TOFU rows at {SHARED / 'tofu'}")
def test_real_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from words import word_tokenizer

    rows = [json.loads(line) for line in (SHARED / "tofu" / "full.json").read_text().splitlines()[-400:]]
    words = word_tokenizer([*(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows)])
    model = save_model(tmp_path / "model", vocab_size=len(words), max_position_embeddings=512)
    words.save_pretrained(model)
    run_all(model, SHARED / "tofu", tmp_path / "runs", 2, "1e-3")
    check(tmp_path / "runs", capsys.readouterr().out)
    facts = read_run(tmp_path / "runs" / "npo-gru").result
    assert facts is not None
    assert (facts["split"], facts["steps"]) == ("forget05", 2)
