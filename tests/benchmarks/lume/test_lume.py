"""LUME from its files to a run and its evaluation, with a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lume_files
import pytest
import torch

from gru_fast.benchmarks import lume
from gru_fast.benchmarks.lume import evaluate as lume_evaluate
from gru_fast.benchmarks.lume.evaluate import LumeEvalOptions, columns, evaluate, report, resummarize, title, wanted
from gru_fast.benchmarks.lume.rows import LumeOptions, load, unlearning, unlearning_data
from gru_fast.cli import main
from gru_fast.data.templates import TEMPLATES
from gru_fast.evaluation.generation import generate
from gru_fast.evaluation.summaries import finished


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lume_files.save_data(tmp_path_factory.mktemp("lume"))
    lume_files.model().save_pretrained(folder / "model")
    lume_files.tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def whole(places: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(places, folder)


def run(places: Path, folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"mia_data": places / "mia_data", "max_new_tokens": 6, "batch_size": 8, "progress": False}
    return evaluate(lume_files.model(), lume_files.tokenizer(), folder, data=places / "data", **{**given, **options})


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / f"{name}.jsonl").read_text().splitlines()]


# ---- the rows --------------------------------------------------------------------------------------------------------


def test_rows_say_of_what_kind_they_are(places: Path) -> None:
    found = load("forget", places / "data")
    assert [row["kind"] for row in found] == ["regurgitation", "knowledge"] * 6
    assert [{key: row[key] for key in ("id", "input", "output", "task")} for row in found] == lume_files.rows("forget")


def test_names_of_the_hubs_splits(places: Path, tmp_path: Path) -> None:
    shutil.copy(places / "data" / "forget.jsonl", tmp_path / "forget_train.jsonl")
    shutil.copy(places / "data" / "retain.jsonl", tmp_path / "forget_validation.jsonl")
    assert load("forget", tmp_path) == load("forget", places / "data")
    assert load("forget", tmp_path, "validation") == load("retain", places / "data")
    assert (lume.retain_of("forget"), lume.retain_of("validation")) == ("retain_train", "retain_validation")


def test_wrong_rows_and_options(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text('{"id": "7x", "input": "a", "output": "b", "task": "Task1"}\n')
    with pytest.raises(
        ValueError, match=r'row 0: field "id": expected one that ends in sc or qa and a number, got "7x"'
    ):
        load("forget", tmp_path)
    (tmp_path / "forget.jsonl").write_text('{"id": "7qa0", "input": "a", "task": "Task1"}\n')
    with pytest.raises(ValueError, match='expected a field "output"'):
        load("forget", tmp_path)
    with pytest.raises(ValueError, match='split: expected forget or validation, got "forgt", did you mean "forget"'):
        LumeOptions(split="forgt")
    with pytest.raises(ValueError, match="max_length: expected an integer of at least 2"):
        LumeOptions(max_length=1)
    with pytest.raises(ValueError, match='got "idk": LUME has no other answers'):
        unlearning_data(lume_files.tokenizer(), tmp_path, parts=("forget", "idk"))


def test_what_is_trained_on_is_what_comes_after_the_input(places: Path) -> None:
    tokenizer = lume_files.tokenizer()
    dataset = unlearning(LumeOptions(data=str(places / "data")), tokenizer, TEMPLATES["phi"], ("forget", "retain"), 0)
    assert len(dataset) == 12
    row, found = lume_files.rows("forget")[0], dataset[0]["forget"]
    prompt, output = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("input", "output"))
    assert found["input_ids"] == [0, *prompt, *output, tokenizer.eos_token_id]
    assert found["labels"] == [-100] * (1 + len(prompt)) + [*output, tokenizer.eos_token_id]
    kept = {tuple(dataset.encoded("retain", index, epoch)["input_ids"]) for index in range(12) for epoch in range(8)}
    assert len(kept) == 12


# ---- the evaluation --------------------------------------------------------------------------------------------------


def test_records_are_what_the_model_writes_and_its_losses(whole: tuple[Path, dict[str, Any]], places: Path) -> None:
    folder, summary = whole
    model, tokenizer = lume_files.model(), lume_files.tokenizer()
    for part in ("forget", "retain"):
        prompts = [tokenizer(row["input"])["input_ids"] for row in lume_files.rows(part)]
        texts = generate(model, tokenizer, prompts, 6, batch_size=1)
        assert [row["generation"] for row in records(folder, part)] == texts
    document = json.loads((places / "mia_data" / "member.jsonl").read_text().splitlines()[0])["document"]
    ids = torch.tensor([tokenizer(document)["input_ids"]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert records(folder, "member")[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["num_rows"] == {"forget": 12, "retain": 12, "member": 2, "nonmember": 2}
    assert 0 <= summary["mia_score"] <= 1
    assert summary["final_score"] is None
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_mmlu_is_added_afterwards(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    found = resummarize(folder, 0.3)
    assert found["final_score"] == pytest.approx((found["task_aggregate"] + found["mia_score"] + 0.3) / 3)
    assert columns(found)["final score"] == found["final_score"]
    assert "MMLU is below 0.371" in report(found)
    assert resummarize(folder)["mmlu"] == 0.3
    assert "(give --mmlu)" in report(whole[1])


def test_a_stopped_evaluation_goes_on(whole: tuple[Path, dict[str, Any]], places: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    (folder / "records" / "member.jsonl").unlink()
    kept = (folder / "records" / "retain.jsonl").read_text().splitlines(keepends=True)
    (folder / "records" / "retain.jsonl").write_text("".join(kept[:3]))
    again = run(places, folder)
    assert {**again, "seconds": 0} == {**whole[1], "seconds": 0}
    assert records(folder, "retain") == records(whole[0], "retain")
    with pytest.raises(ValueError, match="holds records with max_new_tokens 6, this evaluation has 7"):
        run(places, folder, max_new_tokens=7)


def test_without_membership(places: Path, tmp_path: Path) -> None:
    summary = run(places, tmp_path, mia_data=None, mmlu=0.5, max_rows=3)
    assert (summary["mia_auc"], summary["mia_score"], summary["final_score"]) == (None, None, None)
    assert summary["num_rows"] == {"forget": 3, "retain": 3}
    with pytest.raises(FileNotFoundError, match=r'has member, nonmember, but no "forget"'):
        evaluate(lume_files.model(), lume_files.tokenizer(), tmp_path, data=places / "mia_data")


def test_membership_is_added_afterwards(
    whole: tuple[Path, dict[str, Any]], places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(places, tmp_path, mia_data=None)
    monkeypatch.setattr(lume_evaluate, "score_questions", None)  # nothing is written again
    found = run(places, tmp_path)
    assert {**found, "seconds": 0} == {**whole[1], "seconds": 0}
    again = run(places, tmp_path, mia_data=None)  # what is known stays
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    asked = LumeEvalOptions(data=str(places / "data"), max_new_tokens=6)
    known = {**wanted(asked, {}), "model_options": found["settings"]["model_options"]}
    assert finished(tmp_path, known)
    assert not finished(tmp_path, {**known, "mia_data": "elsewhere"})


def test_a_quick_evaluation(whole: tuple[Path, dict[str, Any]], places: Path, tmp_path: Path) -> None:
    summary = run(places, tmp_path, quick=True)
    assert summary["num_rows"] == {"forget": 4, "retain": 4, "member": 1, "nonmember": 1}
    for part in ("forget", "retain"):
        assert records(tmp_path, part) == records(whole[0], part)[::3]
    shown = {heading: value for heading, value in columns(summary).items() if value is not None}
    assert {*summary["intervals"]} == {*shown}
    for heading, (low, high) in summary["intervals"].items():
        assert low <= shown[heading] <= high, heading
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert title(LumeEvalOptions(quick=True)) == "lume-quick"


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_a_run_and_its_evaluation(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["--config", "lume-olmo", "--model", str(places / "model"), "--data", str(places / "data"), "--use-cpu"]
    train += ["--tokenizer", str(places / "model")]
    train += ["--method", "npo_gd", "--rectify", "--disable-tqdm", "--max-steps", "2", "--bf16", "false"]
    train += ["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1"]
    assert main(["unlearn", *train, "--output-dir", str(tmp_path / "run")]) == 0
    assert "2 steps" in capsys.readouterr().out
    options = ["--mia-data", str(places / "mia_data"), "--max-new-tokens", "4", "--max-rows", "2", "--device", "cpu"]
    argv = ["eval", "lume", "--model", str(tmp_path / "run"), *options]  # the data is that of the run
    assert main([*argv, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert summary["settings"]["data"] == str(places / "data")
    assert (tmp_path / "run" / "eval" / "lume" / "summary.json").is_file()
    assert main([*argv, "--mmlu", "0.5"]) == 0
    assert "Final score" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "task aggregate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mmlu": 47.0}, "mmlu: expected an accuracy from 0 to 1, got 47.0"),
        ({"max_new_tokens": 0, "max_rows": -2}, "max_rows: expected at least 0, got -2; max_new_tokens: expected at"),
        ({"split": "train"}, 'split: expected forget or validation, got "train"'),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LumeEvalOptions(**options)
