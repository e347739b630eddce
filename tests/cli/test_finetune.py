"""`gru-fast finetune`: the target model and the retrained one, and the defaults of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tofu_folders import save_data, save_model, tokenizer

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.unlearn.finetune import FinetuneConfig, finetune_trainer


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    save_model(folder / "model")
    return folder


def finetune(places: Path, out: Path, *argv: Any) -> int:
    flags = ["--use-cpu", "--disable-tqdm", "--model", places / "model", "--data", places / "data", "--output-dir", out]
    return main(["finetune", *(str(text) for text in [*flags, *argv])])


@pytest.mark.parametrize(("subset", "rows"), [("full", 16), ("retain95", 12)])
def test_subset(places: Path, tmp_path: Path, subset: str, rows: int) -> None:
    small = ["--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 2, "--learning-rate", "0.01"]
    argv = ["--subset", subset, "--num-train-epochs", 3, "--logging-steps", 1, "--template", "phi", *small]
    assert finetune(places, tmp_path / "run", *argv) == 0
    run = runs.read_run(tmp_path / "run")
    assert run.result is not None
    assert (run.result["command"], run.result["subset"], run.result["steps"]) == ("finetune", subset, 3 * rows // 4)
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert losses[-1] < losses[0]
    assert run.config["template"] == "phi"
    # The template of the run is that of what is made of its model.
    assert main(["unlearn", "--model", str(tmp_path / "run"), "--data", str(places / "data"), "--use-cpu",
                 "--max-steps", "1", "--output-dir", str(tmp_path / "next")]) == 0  # fmt: skip
    assert runs.read_run(tmp_path / "next").config["template"] == "phi"


def test_learning_rate_rises_for_one_epoch_of_five_and_falls(places: Path, tmp_path: Path) -> None:
    small = ["--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 1, "--logging-steps", 1]
    assert finetune(places, tmp_path / "run", *small, "--learning-rate", "1e-3") == 0
    rates = [entry["learning_rate"] for entry in runs.read_run(tmp_path / "run").log if "learning_rate" in entry]
    assert len(rates) == 20  # 4 steps in each of 5 epochs
    assert max(range(20), key=rates.__getitem__) == 4
    assert rates[4] == pytest.approx(1e-3)
    assert rates[0] == 0.0


def test_defaults_of_the_original_code(tmp_path: Path) -> None:
    config = FinetuneConfig(str(tmp_path), use_cpu=True)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
    assert (config.num_train_epochs, config.warmup_steps, config.weight_decay) == (5, 0.2, 0.01)
    assert (str(config.lr_scheduler_type.value), config.max_grad_norm, config.seed) == ("linear", 1.0, 42)


def test_rows_are_not_to_be_stripped_of_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove_unused_columns: expected False"):
        FinetuneConfig(str(tmp_path), use_cpu=True, remove_unused_columns=True)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: expected at least one row to fine-tune on, got an empty set"):
        finetune_trainer(None, FinetuneConfig(str(tmp_path), use_cpu=True), [], tokenizer())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--subset", "retain90"], 'but no "retain90"'),
        (["--max-length", "1"], "max_length: expected an integer of at least 2, got 1"),
        (["--config", "tofu-phi-forget05"], "split: no such option"),
    ],
)  # fmt: skip
def test_wrong_uses(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert finetune(places, tmp_path / "run", *argv) == 1
    text = capsys.readouterr().err
    assert text.startswith("gru-fast finetune: ")
    assert expected in text
