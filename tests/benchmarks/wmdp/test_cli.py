"""WMDP on the command line: recipes against the paper's table, and local files from unlearning to evaluation."""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import wmdp_files
import yaml

from gru_fast import runs
from gru_fast.cli import chosen, main
from gru_fast.cli.commands import unlearn as command
from gru_fast.options import commands
from gru_fast.options import flags as options
from gru_fast.report.collect import collect
from gru_fast.unlearn import methods

# Appendix D, WMDP Zephyr: method -> tau. Gamma is 0.99.
TAUS = {"ga": 1.0, "wga": 0.001, "gd": 0.001, "npo": 0.01, "npo_gd": 0.01}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpora, questions and a model; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    wmdp_files.save_data(folder / "data")
    wmdp_files.save_questions(folder / "questions")
    wmdp_files.save_model(folder / "model")
    return folder


def resolve(*argv: str) -> Any:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([*argv, "--use-cpu"])
    return options.resolve(args, *commands.unlearn(chosen.benchmark(args)), fill=command.fill)


def unlearn(places: Path, out: Path, *argv: Any) -> int:
    """Eight documents of both topics, four a step: two steps."""
    settings = {
        "--benchmark": "wmdp",
        "--data": places / "data",
        "--model": places / "model",
        "--output-dir": out,
        "--split": "bio-cyber",
        "--documents": 8,
        "--num-train-epochs": 1,
        "--gradient-accumulation-steps": 1,
        "--learning-rate": 0.05,
    }
    flags = [str(text) for pair in settings.items() for text in pair]
    return main(["unlearn", "--use-cpu", "--disable-tqdm", *flags, *(str(text) for text in argv)])


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_the_recipe_is_the_papers_table() -> None:
    for method in methods.names():
        model, data, config = resolve("--config", "wmdp-zephyr", "--method", method, "--rectify")
        assert (method, config.tau, config.gamma) == (method, TAUS.get(method), 0.99)
        assert (data.benchmark, data.split, data.data) == ("wmdp", "bio-cyber", "cais/wmdp-corpora")
        assert (data.retain, data.max_length, data.retain_max_length) == ("wikitext", None, None)
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        assert (batch, data.documents / batch, config.num_train_epochs) == (32, 20, 1)
        assert (config.learning_rate, config.lr_scheduler_type, config.weight_decay) == (4e-6, "constant", 0.01)
        assert (config.max_grad_norm, config.bf16, config.rectify) == (0, True, True)
        assert config.output_dir == f"runs/wmdp-bio-cyber-{method}-gru"
        assert model.model == "HuggingFaceH4/zephyr-7b-beta"
    rmu = resolve("--config", "wmdp-zephyr", "--method", "rmu")[2].make_method()
    assert (rmu.alpha, rmu.steering, rmu.hidden_layer(32)) == (100.0, 6.5, 7)


def test_the_recipe_of_rmus_authors() -> None:
    _, data, config = resolve("--config", "wmdp-zephyr-rmu")
    assert (config.method, config.learning_rate, config.weight_decay) == ("rmu", 5e-5, 0.0)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 1)
    assert (data.documents, data.max_length, data.retain_max_length) == (600, 768, 512)


def test_every_recipe_of_wmdp_is_tested() -> None:
    found = [path.stem for path in options.recipes() if path.stem.startswith("wmdp")]
    assert sorted(found) == ["wmdp-zephyr", "wmdp-zephyr-rmu"]


# ---- from load to report ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rmu", "npo", "gd"])
def test_a_run(method: str, places: Path, tmp_path: Path) -> None:
    assert unlearn(places, tmp_path / "run", "--method", method, "--rectify", "--gamma", "0.99", "--tau", "1") == 0
    run = runs.read_run(tmp_path / "run")
    assert run.result is not None
    told = {name: run.result[name] for name in ("benchmark", "split", "method", "rectify", "steps")}
    assert told == {"benchmark": "wmdp", "split": "bio-cyber", "method": method, "rectify": True, "steps": 2}
    assert (run.config["documents"], run.config["retain"]) == (8, "wikitext")
    steps = [entry for entry in run.log if "cos" in entry]
    assert len(steps) == 2
    assert all(entry["retain_loss"] > 0 for entry in steps)
    if method == "rmu":
        assert run.config["method_options"]["alpha"] == 100.0


def test_gdr_is_a_switch_of_its_own(places: Path, tmp_path: Path) -> None:
    assert unlearn(places, tmp_path / "run", "--method", "ga", "--rectify", "--rectifier", "gdr") == 0
    run = runs.read_run(tmp_path / "run")
    assert run.result is not None
    assert run.result["rectifier"] == run.config["rectifier"] == "gdr"
    (entry,) = collect([tmp_path / "run"])
    assert (entry.title, entry.rectified) == ("GA w/ GDR", False)  # neither plain GA nor GA with GRU
    flags = ["--benchmark", "wmdp", "--model", "m", "--method", "ga", "--rectify", "--rectifier", "gdr"]
    assert resolve(*flags)[2].output_dir == "runs/wmdp-cyber-ga-gdr"


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: gru_fast[wmdp]")
def test_from_the_corpora_to_the_numbers(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert unlearn(places, run, "--method", "rmu", "--method-options", "layer=2", "alpha=2", "--rectify") == 0
    asked = ["eval", "wmdp", "--model", str(run), "--questions", str(places / "questions"), "--device", "cpu"]
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["accuracy"]) == {"wmdp_bio", "wmdp_cyber", "mmlu"}
    assert runs.read_run(run).evaluations == {"wmdp": summary}
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    headings, _, row = capsys.readouterr().out.splitlines()[:3]
    assert [heading for heading in ("WMDP Bio", "WMDP Cyber", "MMLU") if heading in headings]
    assert row.split()[:3] == ["RMU", "yes", "bio-cyber"]
    assert f"{summary['accuracy']['wmdp_cyber']:.4f}" in row
    shutil.rmtree(run / "eval" / "wmdp" / "tasks")
    assert main(asked) == 0  # a finished one is only printed
    assert capsys.readouterr().out.startswith("WMDP: 8 wmdp_bio, 8 wmdp_cyber, 8 mmlu questions")
    assert main([*asked, "--limit", "3", "--overwrite", "--tasks", "wmdp_cyber"]) == 0
    assert capsys.readouterr().out.startswith("WMDP: 3 wmdp_cyber questions")


def test_wrong_uses_are_one_line(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: Any) -> str:
        assert unlearn(places, tmp_path / "run", *argv) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "--split: expected one of bio, cyber, bio-cyber, got 'chem'" in said("--split", "chem")
    assert "documents: expected at most the 16 of bio-cyber, got 99" in said("--documents", 99)
    assert "WMDP is texts, not questions" in said("--method", "dpo")
    assert "rmu.layer: expected at most 3" in said("--method", "rmu", "--method-options", "layer=9")
    assert "--idk-file: no option of --benchmark wmdp" in said("--idk-file", "x")
    assert not (tmp_path / "run" / "run.json").exists()
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"documnets": 3}))
    assert "no such option" in said("--config", config)
