"""`gru-fast unlearn` on a few rows: the run folder, going on after a stop, and one clear line for every wrong use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tofu_folders import save_data, save_model

from gru_fast import runs
from gru_fast.cli import main, training
from gru_fast.unlearn import methods


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    save_model(folder / "model")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def unlearn(places: Path, out: Path | None, *argv: Any, model: Any = None, data: Any = None) -> int:
    """Four rows, two a step, one epoch: two steps."""
    settings = {
        "--model": model or places / "model",
        "--data": data or places / "data",
        "--per-device-train-batch-size": 2,
        "--gradient-accumulation-steps": 1,
        "--num-train-epochs": 1,
        "--learning-rate": 0.01,
    }
    if out is not None:
        settings["--output-dir"] = out
    flags = [str(text) for pair in settings.items() for text in pair]
    return main(["unlearn", "--use-cpu", "--disable-tqdm", *flags, *(str(text) for text in argv)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a failed command. Progress bars of transformers are not the command's."""
    bars = ("Loading weights", "Writing model shards", "Reference log-prob")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and not line.startswith(bars)]
    lines = [line for line in lines if not line.startswith("[transformers] The tokenizer has new")]
    assert len(lines) == 1, lines
    return lines[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_run_folder(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--method", "npo", "--rectify", "--tau", "1.5", "--split", "forget05") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: 2 steps in ")
    run = runs.read_run(out)
    assert run.result is not None
    assert {name: run.result[name] for name in ("command", "benchmark", "method", "title", "rectify", "split")} == {
        "command": "unlearn", "benchmark": "tofu", "method": "npo", "title": "NPO", "rectify": True,
        "split": "forget05",
    }  # fmt: skip
    assert (run.result["steps"], run.result["skipped"], run.result["degenerate"]) == (2, 0, 0)
    rows = run.result["rows"]
    assert rows["forget"]["count"] == 4
    assert len({part["hash"] for part in rows.values()}) == 2 == len(rows)
    assert run.result["seconds"] > run.result["seconds_per_step"] > 0
    assert run.result["peak_memory_bytes"] > 2**20
    assert (run.config["tau"], run.config["gamma"], run.config["template"]) == (1.5, 0.8, "plain")
    assert run.config["method_options"] == {"beta": 0.1}  # defaults are on record as well
    assert run.environment["versions"]["transformers"]
    steps = [entry for entry in run.log if "cos" in entry]
    assert len(steps) == 2
    assert all(entry["retain_loss"] > 0 and entry["norm_after"] <= 1.5 * 1.001 for entry in steps)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "reference_log_probs.json"):
        assert (out / name).is_file()
    assert not same(weights(out), weights(places / "model"))


def test_saved_config_does_the_run_again(places: Path, out: Path, tmp_path: Path) -> None:
    assert unlearn(places, out, "--method", "gd", "--rectify", "--gamma", "0.3") == 0
    assert main(["unlearn", "--config", str(out / "config.yaml"), "--output-dir", str(tmp_path / "again")]) == 0
    assert same(weights(out), weights(tmp_path / "again"))
    first, second = (runs.read_run(folder).config for folder in (out, tmp_path / "again"))
    assert {**first, "output_dir": ""} == {**second, "output_dir": ""}


def test_folder_is_named_by_default(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unlearn(places, None, "--method", "ga", "--rectify", "--max-steps", 1) == 0
    assert runs.read_run(tmp_path / "runs" / "tofu-forget05-ga-gru").complete


@pytest.mark.parametrize("method", ["idk", "npo_kl"])
def test_what_a_method_needs_is_loaded(places: Path, out: Path, method: str) -> None:
    assert unlearn(places, out, "--method", method, "--max-steps", 1) == 0


def test_lora(places: Path, out: Path, tmp_path: Path) -> None:
    lora = ["--use-peft", "--lora-r", 2, "--max-steps", 1]
    assert unlearn(places, out, *lora, "--method", "npo", "--rectify") == 0
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    assert unlearn(places, tmp_path / "second", *lora, "--method", "ga", model=out) == 0  # on top of the first
    assert (tmp_path / "second" / "adapter_model.safetensors").is_file()


def test_evaluation_during_training_and_early_words(places: Path, out: Path) -> None:
    assert unlearn(places, out, "--eval-strategy", "steps", "--eval-steps", 1, "--method", "gd") == 0
    evaluated = [entry for entry in runs.read_run(out).log if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert evaluated[0]["eval_retain_loss"] > 0


def test_of_several_gpus_one_is_used(
    places: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trainer's DataParallel would take all, and make three times the rows a step."""
    take_one, rows = training.take_one_device, []

    def of_three(config: Any) -> None:
        config._n_gpu = 3
        rows.append(config.train_batch_size)
        take_one(config)
        rows.append(config.train_batch_size)

    monkeypatch.setattr(training, "take_one_device", of_three)
    assert unlearn(places, out, "--method", "ga") == 0
    assert rows == [6, 2]
    assert "3 GPUs are visible and one is used" in capsys.readouterr().err
    assert runs.read_run(out).result["steps"] == 2


def test_print_config_writes_nothing(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--print-config", "--rectify") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["rectify"], printed["per_device_train_batch_size"]) == (True, 2)
    assert not out.exists()


# ---- going on --------------------------------------------------------------------------------------------------------


def killed(out: Path, checkpoint: int) -> None:
    """Leaves what a run has that was killed after ``checkpoint`` and before the next one."""
    for path in out.iterdir():
        if path.name not in {"config.yaml", "environment.json", "reference_log_probs.json", f"checkpoint-{checkpoint}"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_killed_and_resumed_ends_with_the_same_weights(places: Path, out: Path, stream: list[str]) -> None:
    settings = ["--method", "npo_gd", "--rectify", "--num-train-epochs", 2, "--save-steps", 1, *stream]
    assert unlearn(places, out, *settings) == 0
    unbroken, log = weights(out), runs.read_run(out).log
    killed(out, 3)
    assert not runs.read_run(out).complete
    assert main(["unlearn", "--resume", "--output-dir", str(out)]) == 0
    assert same(weights(out), unbroken)
    run = runs.read_run(out)
    assert run.result is not None
    assert (run.result["steps"], run.result["resumed_from"]) == (4, 3)
    assert [entry["cos"] for entry in run.log if "cos" in entry] == [entry["cos"] for entry in log if "cos" in entry]
    assert len(run.environment["resumed"]) == 1


def test_resume_by_the_same_command(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--method", "ga", "--save-steps", 1]
    assert unlearn(places, out, *settings) == 0
    killed(out, 1)
    assert unlearn(places, out, *settings, "--resume") == 0
    assert "going on from checkpoint-1" in capsys.readouterr().out
    assert unlearn(places, out, *settings, "--resume") == 0
    assert "this run has finished; nothing to resume" in capsys.readouterr().out


def test_resume_without_checkpoint_begins_again(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--method", "ga") == 0
    first = weights(out)
    killed(out, 0)
    assert unlearn(places, out, "--method", "ga", "--resume") == 0
    assert "no checkpoint" in capsys.readouterr().out
    assert same(weights(out), first)


def test_resume_with_other_options(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--rectify", "--save-steps", 1) == 0
    killed(out, 1)
    capsys.readouterr()
    assert unlearn(places, out, "--rectify", "--save-steps", 1, "--gamma", "0.5", "--resume") == 1
    assert f"--resume: the run in {out} has gamma 0.8, not 0.5." in said(capsys)


def test_resume_from_a_checkpoint_of_another_model(
    places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(places / "model", model)
    assert unlearn(places, out, "--save-steps", 1, model=model) == 0
    killed(out, 1)
    save_model(model, hidden_size=32)  # another model has taken the place of the first
    capsys.readouterr()
    assert main(["unlearn", "--resume", "--output-dir", str(out)]) == 1
    assert "checkpoint of another model: expected hidden_size 32, got 16" in said(capsys)


def test_a_stop_says_how_to_go_on(
    places: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gru_fast.unlearn import UnlearnTrainer

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(UnlearnTrainer, "train", stopped)
    assert unlearn(places, out) == 130
    assert f"stopped; the same command with --resume goes on in {out}" in capsys.readouterr().err


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_folder_that_is_not_empty(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("")
    assert unlearn(places, out) == 1
    assert said(capsys).startswith(
        f"gru-fast unlearn: FileExistsError: output folder {out} is not empty: it has no run"
    )


def test_overwrite(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--method", "ga", "--max-steps", 1, "--save-steps", 1) == 0
    capsys.readouterr()
    assert unlearn(places, out, "--method", "ga") == 1
    assert "--overwrite-output-dir clears it" in said(capsys)
    assert unlearn(places, out, "--method", "ga", "--overwrite-output-dir") == 0
    assert not (out / "checkpoint-1").exists()


def test_overwrite_spares_the_model(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(places, out, "--method", "ga", "--max-steps", 1, "--save-steps", 1) == 0
    capsys.readouterr()
    for model in (out, out / "checkpoint-1"):
        assert unlearn(places, out, "--overwrite-output-dir", model=model) == 1
        assert f"would clear --model {model}" in said(capsys)
    assert runs.read_run(out).complete


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--method", "npoo"], f"--method: expected one of {', '.join(methods.names())}, got 'npoo'; "),
        (["--method", "NPO+KL"], "got 'NPO+KL'; did you mean \"npo_kl\"?"),
        (["--gamma", "1.5"], "gamma: expected a number in [0, 1] (the weight of the new retain gradient), got 1.5"),
        (["--tau", "0"], "tau: expected a number above 0"),
        (["--gamma", "1.5", "--lora-r", "0"], "2 errors: (1) lora_r: expected a whole number of at least 1, got 0; "),
        (["--method-options", "bta=3"], 'npo takes beta, got "bta"; did you mean "beta"?'),
        (["--method-options", "beta=0"], "npo.beta: expected a number above 0, got 0"),
        (["--split", "forget10"], 'but no "forget10"'),
        (["--split", "forgte05"], 'got "forgte05", did you mean "forget05"?'),
        (["--template", "phy"], "template: expected one of chat, llama2-chat, phi, plain, zephyr"),
        (["--max-length", "5"], "which leaves none of 5 to score"),
        (["--max-steps", "many"], "--max-steps: expected a whole number, got 'many'"),
        (["--optim", "adam"], "--optim: expected one of adamw_torch,"),
        (["--model", "/nowhere/model"], "model: no folder or file /nowhere/model"),
        (["--config", "tofu-phi-forget5"], 'no recipe "tofu-phi-forget5"; did you mean "tofu-phi-forget05"?'),
        (["--rectify", "--ema-dtype", "bfloat16"], "ema_dtype: expected float32 or a dtype of the trained parameters"),
        (["--dtype", "fp32"], "--dtype: expected one of float32, bfloat16, float16, auto, got 'fp32'"),
    ],
)  # fmt: skip
def test_wrong_uses(
    places: Path, out: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert unlearn(places, out, *argv) == 1
    line = said(capsys)
    assert line.startswith("gru-fast unlearn: ")
    assert expected in line
    assert not out.exists() or not any(out.iterdir())  # the next attempt finds it empty


def test_model_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unlearn", "--use-cpu"]) == 1
    assert said(capsys) == "gru-fast unlearn: ValueError: model: no value; give --model"


def test_unknown_config_key(places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("gama: 0.5\nlearning_rat: 1e-5\n")
    assert unlearn(places, out, "--config", tmp_path / "mine.yaml") == 1
    line = said(capsys)
    assert 'gama: no such option; did you mean "gamma"?' in line
    assert 'learning_rat: no such option; did you mean "learning_rate"?' in line


def test_empty_forget_set(places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(places / "data", tmp_path / "data")
    (tmp_path / "data" / "forget05.json").write_text("\n")
    assert unlearn(places, out, data=tmp_path / "data") == 1
    assert "forget05.json: expected rows, got an empty file" in said(capsys)


def test_folder_whose_weights_are_of_another_model(
    places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(places / "model", tmp_path / "mixed")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    (tmp_path / "mixed" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert unlearn(places, out, model=tmp_path / "mixed") == 1
    assert "are of another model than its config.json: 18 are missing" in said(capsys)


def test_tokenizer_of_another_model(
    places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = save_model(tmp_path / "small", vocab_size=20)
    assert unlearn(places, out, "--tokenizer", places / "model", model=small) == 1
    found = said(capsys)
    assert "has the token" in found
    assert "and the model embeddings of 0 to 19 alone: its tokenizer is of another model" in found
    assert "give the model's own with --tokenizer" in found


def test_run_that_has_not_finished_as_model(
    places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.start(tmp_path / "first", "gamma: 0.8")
    assert unlearn(places, out, model=tmp_path / "first") == 1
    assert "its run has not finished; --resume it" in said(capsys)
