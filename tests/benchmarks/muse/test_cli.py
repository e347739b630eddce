"""MUSE on the command line: recipes against the paper's table, and local files from unlearning to evaluation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import muse_files
import pytest
import yaml
from muse_files import NUM_ROWS

from gru_fast import benchmarks, runs
from gru_fast.cli import main
from gru_fast.cli.commands import unlearn as command
from gru_fast.metrics.muse import SETS
from gru_fast.options import commands
from gru_fast.options import flags as options
from gru_fast.unlearn import methods

# Appendix D, MUSE ICLM-7B: method -> tau. Gamma is 0.8.
TAUS = {"ga": 1.0, "wga": 1.0, "gd": 1.0, "npo": 100.0, "npo_gd": 100.0}
RECIPES = {"muse-books": "muse-bench/MUSE-Books", "muse-news": "muse-bench/MUSE-News"}
EVAL = ["--verbmem-tokens", "8", "--knowmem-tokens", "6", "--batch-size", "4"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two models: the one that is to forget, and one that stands for the retrained."""
    folder = tmp_path_factory.mktemp("places")
    muse_files.save_data(folder / "bbc")
    muse_files.save_model(folder / "target")
    muse_files.save_model(folder / "retrained", seed=1)
    return folder


def unlearn(places: Path, out: Path, *argv: Any) -> int:
    """Pieces of 40 tokens, four a step."""
    settings = {
        "--benchmark": "muse",
        "--model": places / "target",
        "--data": places / "bbc",
        "--max-length": 40,
        "--per-device-train-batch-size": 2,
        "--gradient-accumulation-steps": 2,
        "--num-train-epochs": 1,
        "--learning-rate": 0.01,
        "--output-dir": out,
    }
    flags = [str(text) for pair in settings.items() for text in pair]
    return main(["unlearn", "--use-cpu", "--disable-tqdm", *flags, *map(str, argv)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a failed command."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def resolve(*argv: str) -> Any:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([*argv, "--use-cpu"])
    return options.resolve(args, *commands.unlearn(benchmarks.get("muse")), fill=command.fill)


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_the_papers_table(recipe: str) -> None:
    for method in methods.names():
        model, data, config = resolve("--config", recipe, "--method", method, "--rectify")
        assert (method, config.tau, config.gamma) == (method, TAUS.get(method, 1.0), 0.8)
        assert (data.benchmark, data.data, data.split, data.max_length) == ("muse", RECIPES[recipe], "forget", None)
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
        assert (config.learning_rate, config.num_train_epochs, config.lr_scheduler_type) == (1e-5, 1, "constant")
        assert (config.weight_decay, config.max_grad_norm, config.bf16) == (0.01, 0, True)
        assert config.output_dir == f"runs/{recipe}-{method}-gru"
        assert model.model == f"{RECIPES[recipe]}_target"


def test_every_recipe_of_muse_is_tested() -> None:
    assert [path.stem for path in options.recipes() if path.stem.startswith("muse")] == list(RECIPES)


# ---- from load to report ---------------------------------------------------------------------------------------------


def test_a_run_and_its_evaluation(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert unlearn(places, out, "--method", "npo_gd", "--rectify", "--tau", 100) == 0
    run = runs.read_run(out)
    assert run.result is not None
    told = {name: run.result[name] for name in ("benchmark", "split", "method", "rectify")}
    assert told == {"benchmark": "muse", "split": "forget", "method": "npo_gd", "rectify": True}
    assert (run.config["benchmark"], run.config["max_length"]) == ("muse", 40)
    pieces = len(benchmarks.get("muse").chunks(muse_files.tokenizer(), (places / "bbc/raw/forget.txt").read_text(), 40))
    assert run.result["steps"] == -(-pieces // 4)
    steps = [entry for entry in run.log if "cos" in entry]
    assert len(steps) == run.result["steps"]
    assert all(entry["retain_loss"] > 0 for entry in steps)

    retrained = str(places / "retrained")
    assert main(["eval", "muse", "--model", retrained, "--data", str(places / "bbc"), *EVAL]) == 0
    capsys.readouterr()
    arguments = ["eval", "muse", "--model", str(out), "--retain-logs", retrained, *EVAL]
    assert main([*arguments, "--json"]) == 0  # the run says where the data are
    summary = json.loads(capsys.readouterr().out)
    assert (summary["benchmark"], summary["corpus"]) == ("muse", "news")
    assert summary["num_rows"] == dict.fromkeys(SETS, NUM_ROWS)
    assert summary["privleak"] is not None
    assert runs.read_run(out).evaluations == {"muse-news": summary}
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{summary['privleak']:.2f} %" in printed
    assert "KnowMem on retain" in printed
    assert main([*arguments, "--write-log", "open-unlearning", "--stemmer"]) == 0
    log = json.loads((out / "eval" / "muse-news" / "MUSE_SUMMARY.json").read_text())
    stemmed = json.loads((out / "eval" / "muse-news" / "summary.json").read_text())
    assert log == {
        metric: pytest.approx(stemmed[name] / 100)
        for name, metric in (
            ("knowmem_f", "forget_knowmem_ROUGE"),
            ("verbmem_f", "forget_verbmem_ROUGE"),
            ("knowmem_r", "retain_knowmem_ROUGE"),
        )
    }
    assert main([*arguments, "--write-log", "original"]) == 1
    assert "--write-log: expected open-unlearning" in capsys.readouterr().err.replace("one of ", "").replace("'", "")


def test_one_forget_set_after_another(places: Path, tmp_path: Path) -> None:
    assert unlearn(places, tmp_path / "one", "--method", "ga", "--split", "sust_1", "--max-steps", 1) == 0
    second = ["--method", "ga", "--split", "sust_2", "--max-steps", 1, "--model", tmp_path / "one"]
    assert unlearn(places, tmp_path / "two", *second) == 0
    assert runs.read_run(tmp_path / "two").config["model"] == str(tmp_path / "one")


def test_a_saved_config_is_of_its_benchmark(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert unlearn(places, out, "--method", "ga", "--max-steps", 1) == 0
    capsys.readouterr()
    assert main(["unlearn", "--config", str(out / "config.yaml"), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["benchmark"] == "muse"


def test_a_tofu_evaluation_takes_nothing_from_a_muse_run(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert unlearn(places, out, "--method", "ga", "--max-steps", 1) == 0
    assert main(["eval", "tofu", "--model", str(out)]) == 1
    assert "does not say what was to be forgotten" in said(capsys)


# ---- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "idk"], "expected some of forget, retain, got"),
        (["--split", "forget05"], "split: expected one of forget, scal_1"),
        (["--split", "scal_7"], 'but no "forget_7"'),
        (["--idk-file", "x"], "--idk-file: no option of --benchmark muse; leave it out"),
        (["--benchmark", "mus"], "benchmark: expected one of lume, muse"),
        (["--benchmark", "tofu"], "expected forget05.json or forget05.jsonl in it"),
    ],
)
def test_wrong_use_is_one_clear_line(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    split = ["--split", "forget05"] if argv[-1] == "tofu" else []
    assert unlearn(places, tmp_path / "run", *argv, *split) == 1
    assert message in said(capsys)


def test_the_retrained_model_must_be_evaluated_first(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    muse_files.save_model(tmp_path / "other")
    logs = ["--retain-logs", str(tmp_path / "other")]
    assert main(["eval", "muse", "--model", str(places / "target"), "--data", str(places / "bbc"), *logs]) == 1
    assert "no evaluation on news in it; run `gru-fast eval muse --model" in said(capsys)


def test_splits_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "splits", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["splits"]
    assert {"name": "scal_4", "benchmark": "muse", "retain": "retain1"} in rows
    assert {"name": "forget05", "benchmark": "tofu", "retain": "retain95"} in rows


def test_a_report_has_the_columns_of_the_papers_table(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gru_fast.cli.commands.report")
    out, retrained = tmp_path / "runs/ga", str(places / "retrained")
    assert main(["eval", "muse", "--model", retrained, "--data", str(places / "bbc"), *EVAL]) == 0
    assert unlearn(places, out, "--method", "ga", "--max-steps", 1) == 0
    capsys.readouterr()
    assert main(["eval", "muse", "--model", str(out), "--retain-logs", retrained, "--json", *EVAL]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    for heading in ("VerbMem", "KnowMem", "PrivLeak"):
        assert heading in printed
    for name in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak"):
        assert f"{summary[name]:.2f}" in printed
