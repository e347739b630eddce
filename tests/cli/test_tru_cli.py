"""`gru-fast tru` on a few rows: one vector, a run folder a strength, going on, one clear line for every wrong use."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tofu_folders import save_data, save_model

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.cli.commands import tru as command
from gru_fast.options import commands
from gru_fast.options import flags as options
from gru_fast.unlearn import tru
from gru_fast.unlearn.task_vector import TaskVector

STRENGTHS = {
    "tru-tofu-phi-forget05": 0.7, "tru-tofu-phi-forget10": 0.75, "tru-tofu-llama2-forget05": 0.65,
    "tru-tofu-llama2-forget10": 0.85,
}  # fmt: skip
BARS = ("Loading weights", "Writing model shards", "TRU:", "TV:")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    save_model(folder / "model")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "vector"


def run(places: Path, out: Path | None, *argv: Any, model: Any = None) -> int:
    """Four rows, two steps each."""
    settings = {"--model": model or places / "model", "--data": places / "data"}
    if "--device" not in argv:
        settings["--device"] = "cpu"
    if "--method" not in argv:
        settings["--steps"] = "2"
    if "--finetuned" not in argv:
        settings["--learning-rate"] = "0.01"
    if out is not None:
        settings["--output-dir"] = out
    flags = [str(text) for pair in settings.items() for text in pair]
    return main(["tru", *flags, *(str(text) for text in argv)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a failed command. Progress bars are not it."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line.split("\r")[-1] for line in lines if not line.strip().startswith(BARS)]
    assert len(lines) == 1, lines
    return lines[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    # Copies: the file may be overwritten, and what is loaded is mapped from it.
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_vector_and_its_strengths(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, "--stg", "0.5", "0.7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: TRU, 4 of 4 units, ")
    assert lines[1:] == [f"{out}/stg-{stg}: TRU with strength {stg}" for stg in ("0.5", "0.7")]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml", "stg-0.5", "stg-0.7", "task_vector.safetensors", "units.json",
    ]  # fmt: skip
    found, origin = TaskVector.load(out / "task_vector.safetensors"), weights(places / "model")
    for stg in (0.5, 0.7):
        run_of = runs.read_run(out / f"stg-{stg}")
        assert run_of.result is not None
        told = {name: run_of.result[name] for name in ("command", "benchmark", "method", "title", "split", "stg")}
        assert told == {
            "command": "tru", "benchmark": "tofu", "method": "tru", "title": "TRU", "split": "forget05", "stg": stg,
        }  # fmt: skip
        assert (run_of.result["units"], run_of.result["steps"], run_of.result["skipped"]) == (4, 8, 0)
        assert run_of.result["seconds_per_step"] > 0
        assert run_of.config["stg"] == [stg]
        for name, tensor in weights(out / f"stg-{stg}").items():
            if name in found.tensors:
                torch.testing.assert_close(tensor, origin[name] - stg * found.tensors[name])
    units = json.loads((out / "units.json").read_text())["log"]
    assert [entry["unit"] for entry in units] == [0, 1, 2, 3]


def test_evaluation_finds_what_it_needs(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, "--num-units", 2) == 0
    capsys.readouterr()
    assert main(["eval", "tofu", "--model", str(out / "stg-0.7"), "--device", "cpu", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["split"], summary["num_rows"]["forget"]) == ("forget05", 4)
    assert runs.read_run(out / "stg-0.7").evaluations["tofu-forget05"] == summary


def test_strengths_added_later_compute_nothing(
    places: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(places, out) == 0
    monkeypatch.setattr(tru, "rectified", None)  # would be called
    before = (out / "stg-0.7" / "run.json").stat().st_mtime_ns
    again = ["tru", "--output-dir", str(out), "--resume"]
    capsys.readouterr()
    assert main([*again, "--stg", "0.7", "0.85"]) == 0
    assert capsys.readouterr().out == f"{out}/stg-0.85: TRU with strength 0.85\n"
    assert runs.read_run(out / "stg-0.85").complete
    assert (out / "stg-0.7" / "run.json").stat().st_mtime_ns == before
    assert main(again) == 0
    assert "there are models of all these strengths; nothing to do" in capsys.readouterr().out


def test_plain_task_vector(places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, "--method", "tv", "--epochs", 2, "--rows-per-step", 2, "--stg", 1, 2) == 0
    result = runs.read_run(out / "stg-2").result
    assert result is not None
    assert (result["title"], result["method"], result["steps"]) == ("TV", "tv", 4)
    save_model(tmp_path / "learned", seed=1)
    finetuned = ["--method", "tv", "--finetuned", tmp_path / "learned", "--stg", -1]
    assert run(places, tmp_path / "other", *finetuned) == 0
    learned = weights(tmp_path / "learned")  # minus -1 times the way there
    for name, tensor in weights(tmp_path / "other" / "stg--1").items():
        torch.testing.assert_close(tensor, learned[name])
    # The record says what it was made of, and holds to it.
    assert runs.read_config(tmp_path / "other" / "stg--1")["finetuned"] == str(tmp_path / "learned")
    again = ["tru", "--output-dir", str(tmp_path / "other"), "--resume", "--stg", "3"]
    assert main([*again, "--finetuned", str(places / "model")]) == 1
    assert f"finetuned is '{tmp_path / 'learned'}' there, '{places / 'model'}' now" in said(capsys)
    assert main(again) == 0


def test_strengths_that_differ_little_have_folders_of_their_own(places: Path, out: Path) -> None:
    assert run(places, out, "--num-units", 1, "--stg", 0.12345671, 0.12345672, 2) == 0
    assert {path.name for path in out.glob("stg-*")} == {"stg-0.12345671", "stg-0.12345672", "stg-2"}
    assert runs.read_run(out / "stg-0.12345671").result["stg"] == 0.12345671  # type: ignore[index]


def test_folder_is_named_by_default(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(places, None, "--num-units", 1) == 0
    assert runs.read_run(tmp_path / "runs" / "tofu-forget05-tru" / "stg-0.7").complete


# ---- going on --------------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_is_the_same(
    places: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(places, tmp_path / "unbroken") == 0
    unit = tru._Loop._unit

    def stop(self: Any, index: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return unit(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(tru._Loop, "_unit", stop)
        assert run(places, out, "--save-units", 1) == 130
    assert (out / "state" / "units-0.safetensors").is_file()
    assert not (out / "task_vector.safetensors").exists()
    assert main(["tru", "--output-dir", str(out), "--resume"]) == 0
    one, two = (TaskVector.load(folder / "task_vector.safetensors") for folder in (out, tmp_path / "unbroken"))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in two.tensors)
    assert not (out / "state").exists()


def test_model_that_was_cut_off_is_written_anew(places: Path, out: Path) -> None:
    assert run(places, out) == 0
    whole = weights(out / "stg-0.7")
    (out / "stg-0.7" / "run.json").unlink()
    (out / "stg-0.7" / "model.safetensors").write_bytes(b"")
    assert run(places, out, "--resume") == 0
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(out / "stg-0.7").items())


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", STRENGTHS)
def test_recipes_are_the_papers(recipe: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["--config", recipe])
    model, data, config = options.resolve(args, *commands.tru(), fill=command.fill)
    assert (config.stg, config.learning_rate, config.method) == ([STRENGTHS[recipe]], 1e-4, "tru")
    assert recipe.endswith(data.split)
    assert (model.template, config.output_dir) == (
        "phi" if "phi" in recipe else "llama2-chat",
        f"runs/tofu-{data.split}-tru",
    )


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in options.recipes() if path.stem.startswith("tru-")} == {*STRENGTHS}


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--use-peft"], "ValueError: use_peft: a task vector is of the model's own weights"),
        (["--finetuned", "x"], "ValueError: finetuned: no option of --method tru; leave it out"),
        (["--device", "gpu"], "ValueError: device: expected one that is here, such as cpu"),
        (["--epochs", "3"], "ValueError: epochs: no option of --method tru; leave it out"),
        (["--num-units", "9"], "ValueError: num_units: expected 1 to 4, the rows of the forget set, got 9"),
        (["--resume", "--overwrite-output-dir"], "ValueError: --resume: goes on in a folder that"),
        (["--stg", "much"], "ValueError: stg: expected finite numbers, got much"),
    ],
)
def test_wrong_uses(places: Path, out: Path, argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, *argv) == 1
    assert said(capsys).startswith(f"gru-fast tru: {line}")
    assert not out.exists()


def test_models_that_cannot_be_had_leave_the_folder_alone(
    places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(places / "model", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    save_model(tmp_path / "deeper", num_hidden_layers=2)
    tv = ["--method", "tv", "--finetuned"]
    refused: list[tuple[list[Any], Path]] = [
        ([], tmp_path / "bare"), ([*tv, tmp_path / "bare"], places / "model"),
        ([*tv, tmp_path / "deeper"], places / "model"),
    ]  # fmt: skip
    for argv, model in refused:
        assert run(places, out, *argv, model=model) == 1
        said(capsys)
        assert not out.exists()
    assert run(places, out, "--num-units", 1) == 0
    before = (out / "task_vector.safetensors").read_bytes()
    for argv, model in refused:
        assert run(places, out, *argv, "--overwrite-output-dir", model=model) == 1
        assert (out / "task_vector.safetensors").read_bytes() == before


def test_folders_that_are_not_empty(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert run(places, out, "--resume") == 1
    assert "is not empty: there is no task vector in it; choose another --output-dir" in said(capsys)
    shutil.rmtree(out)
    assert run(places, out, "--num-units", 1) == 0
    capsys.readouterr()
    assert run(places, out, "--num-units", 1) == 1
    assert "--resume goes on in it or adds strengths, --overwrite-output-dir clears it" in said(capsys)
    assert run(places, out, "--overwrite-output-dir") == 0
    capsys.readouterr()
    assert run(places, out, "--resume", "--steps", 3, "--stg", 0.1) == 1
    assert "made with something else: steps is 2 there, 3 now. Choose another --output-dir" in said(capsys)


def test_vector_of_another_model(places: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, "--num-units", 1) == 0
    capsys.readouterr()
    save_model(tmp_path / "other", seed=3)
    assert run(places, out, "--num-units", 1, "--resume", "--stg", 0.1, model=tmp_path / "other") == 1
    assert "task vector: it is of another model than this one" in said(capsys)


def test_print_config_writes_nothing(places: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(places, out, "--print-config") == 0
    assert "stg: [0.7]" in capsys.readouterr().out
    assert not out.exists()
