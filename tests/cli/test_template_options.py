"""`--template-options`: variables of a chat template, which a run keeps and whatever is done with it takes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tofu_folders import TEXT, save_data, save_model
from words import word_tokenizer

from gru_fast import runs
from gru_fast.benchmarks.tofu.rows import TofuOptions
from gru_fast.cli import main
from gru_fast.models.load import ModelOptions
from gru_fast.sweep.options import SweepOptions
from gru_fast.sweep.plan import Plan

CLOSED = "closed"
CHAT = (
    "{% for m in messages %}Question: {{ m.content }}\n{% endfor %}Answer: "
    "{% if enable_thinking is defined and not enable_thinking %}closed{% else %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model that thinks, unless told not to; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    words = word_tokenizer([TEXT, f"{CLOSED} < think >", *map(str, range(16))], chat_template=CHAT)
    save_model(folder / "model", with_tokenizer=False, vocab_size=len(words))
    words.save_pretrained(folder / "model")
    return folder


OPTIONS = ("--template-options", "enable_thinking=false")
TRAINING = (
    "--use-cpu", "--disable-tqdm", "--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 1,
    "--num-train-epochs", 1,
)  # fmt: skip


def run(places: Path, command: str, out: Path, *argv: Any) -> int:
    named = ["--model", places / "model", "--data", places / "data", "--output-dir", out]
    return main([*command.split(), *map(str, named), *map(str, argv)])


def evaluated(model: Path, *argv: Any) -> dict[str, Any]:
    assert main(["eval", "tofu", "--model", str(model), "--split", "forget05", *map(str, argv)]) == 0
    summary: dict[str, Any] = json.loads((model / "eval/tofu-forget05/summary.json").read_text())
    return summary


def test_a_run_keeps_them_and_its_evaluation_takes_them_over(places: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(places, "unlearn", out, "--split", "forget05", "--method", "ga", *TRAINING, *OPTIONS) == 0
    config = runs.read_run(out).config
    assert (config["template"], config["template_options"]) == ("chat", {"enable_thinking": False})
    settings = evaluated(out)["settings"]  # without the option it would warn of an open thought, an error in tests
    assert settings["template_options"] == settings["model_options"]["template_options"] == {"enable_thinking": False}
    # Another template is asked for: the run's variables are none of its.
    settings = evaluated(out, "--template", "phi", "--overwrite")["settings"]
    assert (settings["template"], settings["template_options"]) == ("phi", None)


def test_other_values_are_another_evaluation(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(places, "finetune", out, *TRAINING, *OPTIONS) == 0
    evaluated(out)
    with pytest.warns(UserWarning, match="an open <think>"):
        assert main(["eval", "tofu", "--model", str(out), "--split", "forget05", "--template-options", "{}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "records with template_options {'enable_thinking': False}, this evaluation has None" in said


def test_a_task_vector_keeps_them(places: Path, tmp_path: Path) -> None:
    argv = ("--method", "tv", "--split", "forget05", "--device", "cpu", "--epochs", 1, "--stg", 0.5)
    assert run(places, "tru", tmp_path / "tv", *argv, *OPTIONS) == 0
    config = runs.read_run(tmp_path / "tv" / "stg-0.5").config
    assert config["template_options"] == {"enable_thinking": False}


def test_a_slip_in_a_name_is_one_line(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--split", "forget05", *TRAINING, "--template-options", "enable_thinkin=false")
    assert run(places, "unlearn", tmp_path / "run", *argv) == 1
    assert 'has no variable "enable_thinkin", did you mean "enable_thinking"?' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sweep_evaluates_with_them() -> None:
    model = ModelOptions("some/model", template="chat", template_options={"enable_thinking": False})
    plan = Plan(Path("out"), SweepOptions(retain_logs="log"), model, TofuOptions(), {})
    assert plan.evaluation()["template_options"] == {"enable_thinking": False}


def test_a_calibration_takes_them_from_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.start(tmp_path / "run", "template: chat\ntemplate_options: {enable_thinking: false}\nmodel: some/model\n")
    (tmp_path / "run" / "config.json").write_text("{}")  # the folder of a model
    assert main(["calibrate", "--model", str(tmp_path / "run"), "--print-config"]) == 0
    assert "template_options: {enable_thinking: false}" in capsys.readouterr().out
