"""`gru-fast eval muse --metrics`: gold texts behind the evaluation's own prompts, membership by its privleak texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import muse_files
import pytest
from muse_files import NUM_ROWS
from words import BOS

from gru_fast.benchmarks.muse.extra import _with_gold
from gru_fast.benchmarks.muse.records import load_prompts
from gru_fast.benchmarks.muse.rows import load
from gru_fast.cli import main

ASKED = ("extraction_strength", "fluency", "mia_min_k", "mia_loss", "mia_gradnorm")
LIMITS = ("--verbmem-tokens", "8", "--knowmem-tokens", "6", "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return muse_files.save_data(tmp_path_factory.mktemp("muse") / "bbc")


def evaluate(model: Path, data: Path, *args: str) -> dict[str, Any]:
    assert main(["eval", "muse", "--model", str(model), "--data", str(data), *LIMITS, *args]) == 0
    return json.loads((model / "eval" / "muse-news" / "summary.json").read_text())


def test_gold_is_scored_behind_its_prompt(data: Path) -> None:
    tokenizer = muse_files.tokenizer()
    row = load("verbmem", "forget", data)[0]
    encoded = _with_gold(tokenizer, load_prompts(tokenizer, data, verbmem_tokens=5)["verbmem_f"][0])
    start = tokenizer(row["prompt"])["input_ids"]
    assert encoded["input_ids"][: len(start)] == start
    assert encoded["labels"][: len(start)] == [-100] * len(start)
    gold = encoded["labels"][len(start) :]
    assert tokenizer.decode(gold) == "It brought plums to"
    assert encoded["input_ids"] == start + gold
    assert encoded["input_ids"].count(BOS) == 1


def test_metrics_are_added_to_an_evaluation_and_printed_again(
    tmp_path: Path, data: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = muse_files.save_model(tmp_path / "unlearned")
    plain = evaluate(model, data)
    found = evaluate(model, data, "--metrics", *ASKED)
    numbers = found.pop("extra")
    assert found == plain
    assert list(numbers) == list(ASKED)
    assert set(numbers["extraction_strength"]) == {"verbmem_f", "knowmem_f", "knowmem_r"}
    assert len(loads) == 2
    assert evaluate(model, data, "--metrics", "mia_zlib", "mia_loss")["extra"]["mia_loss"] == numbers["mia_loss"]
    assert list(evaluate(model, data)["extra"]) == [*ASKED, "mia_zlib"]
    assert len(loads) == 2
    assert f"{'mia_loss':<28}{numbers['mia_loss']['auc']:>14.6f}" in capsys.readouterr().out
    # The evaluation and the metrics see the same texts.
    folder = model / "eval" / "muse-news"
    for of in ("privleak_forget", "privleak_holdout"):
        rows = [json.loads(line) for line in (folder / "records" / f"{of}.jsonl").read_text().splitlines()]
        tokens = [json.loads(line) for line in (folder / "extra" / of / "tokens.jsonl").read_text().splitlines()]
        assert len(rows) == len(tokens) == NUM_ROWS
        for row, found_tokens in zip(rows, tokens, strict=True):
            assert len(found_tokens["log_probs"]) == row["num_tokens"]
            assert -sum(found_tokens["log_probs"]) / row["num_tokens"] == pytest.approx(row["loss"], abs=1e-5)


def test_privleak_is_relative_to_the_retrained_model(tmp_path: Path, data: Path) -> None:
    model, retained = (muse_files.save_model(tmp_path / name, seed) for seed, name in enumerate(("ours", "theirs")))
    theirs = evaluate(retained, data, "--metrics", "mia_loss")["extra"]["mia_loss"]
    ours = evaluate(model, data, "--metrics", "mia_loss", "--retain-logs", str(retained))["extra"]["mia_loss"]
    assert ours["retained_auc"] == theirs["auc"]
    assert ours["privleak"] == pytest.approx(100 * (theirs["auc"] - ours["auc"]) / (1 - theirs["auc"]))
    records = retained / "eval" / "muse-news" / "records"
    again = evaluate(model, data, "--metrics", "mia_loss", "--retain-logs", str(records))
    assert again["extra"]["mia_loss"] == ours


def test_wrong_metrics_are_refused_at_once(
    tmp_path: Path, data: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = muse_files.save_model(tmp_path / "unlearned")
    assert main(["eval", "muse", "--model", str(model), "--data", str(data), "--metrics", "mia_reference"]) == 1
    assert "reference_model: expected a model for mia_reference, got none" in capsys.readouterr().err
    assert loads == []
