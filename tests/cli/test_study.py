"""gru-fast study on a toy: killed and gone on with, what it leaves, what fails, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tofu_folders import save_data

from gru_fast import runs
from gru_fast.benchmarks import tofu
from gru_fast.cli import main, parse
from gru_fast.jobs import driver
from gru_fast.runs.records import Records
from gru_fast.study import results, toy
from gru_fast.study.task import _has_all_strengths, _how

SMALL = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
RECIPE: dict[str, Any] = {
    "splits": ["forget05"],
    "device": "cpu",
    "toy": {"hidden_size": 16, "layers": 1, "vocab_size": 300, "retain_rows": 8, "world_repeats": 1},
    "model": {"template": "llama2-chat"},
    "finetune": {"num_train_epochs": 2, "learning_rate": 1e-3, "save_strategy": "no", **SMALL},
    "unlearn": {"num_train_epochs": 2, "learning_rate": 1e-3, "gamma": 0.5, **SMALL},
    "methods": {"ga": {}},
    "evaluate": {"max_rows": 4, "max_new_tokens": 2},
    "tru": {"stg": [1, 2], "num_units": 2, "steps": 1},
    "along": {},
    "ablation": {"tau": 0.5},
    "calibration": {"shares": [0.9]},
    "samples": 2,
}
# A model that has learned nothing has a Model Utility of 0, of which no share can be kept.
FAILING = ["forget05-seed0-ga-calibrated", "forget05-seed0-ga-gru-calibrated"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a recipe; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    (folder / "small.yaml").write_text(f"# A small one\n{yaml.safe_dump(RECIPE, sort_keys=False)}")
    return folder


def argv(places: Path, out: Path, *more: Any) -> list[str]:
    given = ("study", places / "small.yaml", "--data", places / "data", "--output-dir", out, *more)
    return [str(text) for text in given]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_gone_on_with(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    line = [sys.executable, "-m", "gru_fast.cli", *argv(places, out)]
    process = subprocess.Popen(line, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    original = out / "models" / "original-seed0"
    wait_for((original / "run.json").is_file)
    os.killpg(process.pid, signal.SIGKILL)  # the command and its worker
    process.wait()
    done = runs.read_run(original).result

    assert main(argv(places, out)) == 1  # the calibrations
    printed = capsys.readouterr().out
    assert "no share can be kept" in printed
    assert "2 of 11 jobs not done" in printed
    assert str(out / "logs" / f"{FAILING[0]}.log") in printed
    assert runs.read_run(original).result == done  # not trained again
    check_results(results.read(out), out)
    check_files(out)

    # Once more: nothing is left to do, and the report is the same to the byte.
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "tables/runs.csv")}
    assert main(argv(places, out)) == 1
    assert "11 jobs, 11 of them over" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in before} == before

    # The report again, from results.json alone.
    again = tmp_path / "again"
    assert main(["study", str(out), "--report", "--output-dir", str(again)]) == 0
    assert (again / "report.md").read_bytes() == before["report.md"]
    assert main(argv(places, out, "--report")) == 1  # from the jobs: the calibrations are among them
    capsys.readouterr()

    # The folder says which study it is; what its jobs have done since counts, whatever results.json says.
    (out / "results.json").write_text("{}")
    assert main(["study", str(out), "--data", str(places / "data"), "--report"]) == 1
    assert {name: (out / name).read_bytes() for name in before} == before
    capsys.readouterr()

    # A study does not shrink: its report would not show all that was run. The refusal leaves it as it was.
    assert main(argv(places, out, "--seeds", 1)) == 1
    assert "-seed0-ga, which this recipe leaves out. A study can grow, not shrink" in capsys.readouterr().err
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == results.read(out).recipe

    # Another option for a job that is there is refused.
    changed = {**RECIPE, "unlearn": {**RECIPE["unlearn"], "learning_rate": 2e-3}}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(changed))
    assert main(["study", str(other), "--data", str(places / "data"), "--output-dir", str(out)]) == 1
    assert (
        "forget05-seed0-ga was made with step 1.learning-rate '--learning-rate 0.001', not '--learning-rate 0.002'"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_commands_by_a_launcher_and_a_part_that_comes_too_late(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout in which nothing is built hides the installed package
    start = f"{sys.executable} -m gru_fast.cli"
    left_out = dict.fromkeys(("tru", "along", "ablation", "calibration"))
    recipe = tmp_path / "launched.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **left_out, "launch": {"unlearn": start}}))
    out = tmp_path / "study"
    given = ["study", str(recipe), "--data", str(places / "data"), "--output-dir", str(out)]
    assert main(given) == 0
    gru = next(run for run in results.read(out).runs if run.name == "forget05-seed0-ga-gru")
    assert [line.partition(" --")[0] for line in gru.commands] == [f"{start} unlearn", "gru-fast eval tofu"]
    assert f"$ {start} unlearn --template" in (out / gru.log).read_text()
    assert gru.environment["command"].startswith("gru-fast unlearn --template")

    # Calibration needs weights that the jobs of the runs delete.
    later = {**RECIPE, **left_out, "launch": {"unlearn": start}, "calibration": {"shares": [0.9]}}
    recipe.write_text(yaml.safe_dump(later))
    capsys.readouterr()
    assert main(given) == 1
    assert "ga-calibrated needs the weights of" in capsys.readouterr().err

    # Other processes share the rows of a step otherwise.
    recipe.write_text(yaml.safe_dump({**RECIPE, **left_out}))
    assert main(given) == 1
    assert f"forget05-seed0-ga was made with step 1.launch '{start}', not None" in capsys.readouterr().err


def check_results(found: results.StudyResults, out: Path) -> None:
    by_name = {run.name.removeprefix("forget05-seed0-"): run for run in found.runs}
    assert [*by_name] == [
        "retrained-forget05-seed0", "original-forget05-seed0", "ga", "ga-gru", "tru-stg-1", "tru-stg-2", "ga-clipped",
        "ga-gru-gamma0.5-tau0.5",
    ]  # fmt: skip
    assert all(run.is_done for run in found.runs)
    for name, run in by_name.items():
        summary = json.loads(next((out / run.folder).glob("eval/*/summary.json")).read_text())
        assert run.scores["FQ (ln p)"] == summary["forget_quality"]["log_p"], name
        assert run.scores["MU"] == summary["model_utility"], name
    assert by_name["retrained-forget05-seed0"].scores["FQ (ln p)"] == 0
    plain, gru = by_name["ga"], by_name["ga-gru"]
    assert (plain.config["rectify"], gru.config["rectify"]) == (False, True)
    assert (gru.config["gamma"], gru.gamma, gru.tau) == (0.5, 0.5, None)
    assert [(point.epoch, point.step) for point in gru.points] == [(1.0, 1), (2.0, 2)]
    assert gru.points[-1].scores == gru.scores
    moved = [point.moved for point in gru.points]
    assert all(0 < distance < 0.5 for distance in moved)
    assert len({*moved}) == 2
    assert all(len(values) == 2 for values in gru.steps.values())
    assert gru.steps["cos"][0] == pytest.approx(runs.read_run(out / gru.folder).log[0]["cos"], rel=1e-4)
    assert [(sample.set, sample.question) for sample in gru.samples[:3]] == [
        ("forget", "Where was author 12 born?"),
        ("forget", "Where was author 13 born?"),
        ("retain", "Where was author 0 born?"),
    ]
    assert "calibration" in gru.reason
    assert gru.log == f"logs/{FAILING[1]}.log"
    assert [line.split()[1] for line in gru.commands] == ["unlearn", "eval", "eval", "calibrate"]
    assert found.seeds == [0]
    assert found.recipe["toy"]["retain_rows"] == 8


def check_files(out: Path) -> None:
    assert not list(out.glob("runs/**/task_vector.safetensors"))
    assert not list(out.glob("runs/**/stg-*/*.safetensors"))
    assert not list(out.glob("runs/**/ga-clipped/*.safetensors"))
    assert list(out.glob("models/*/*.safetensors"))  # the next study of this folder needs them
    assert "A small one" in (out / "report.html").read_text()
    assert (out / "figures" / "steps-forget05.svg").is_file()
    rows = (out / "tables" / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 8
    assert (out / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--methods", "gaa"), 'has no "gaa"; did you mean "ga"?; it has ga'),
        (("--splits", "forget10"), 'has no "forget10"'),
        (("--seeds", "one"), "seeds: expected a whole number, got 'one'"),
        (("--devices", "0+1"), "--devices: no option any more; give --gpus-per-run, and"),
        (("--workers", "0"), "workers: expected a whole number of at least 1, got 0"),
        (("--storage", "x"), "--storage: no option any more; machines share a study or sweep as a Ray cluster"),
        (("--report",), "no study in it; leave --report out to begin it"),
    ],
)
def test_refused(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], text: str
) -> None:
    assert main(argv(places, tmp_path / "study", *more)) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(("part", "model"), [("excerpt", {"model": "org/base"}), ("toy", {"template": "llama2-chat"})])
def test_more_rows_than_there_are_is_refused_before_the_first_job(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, model: dict[str, Any]
) -> None:
    others = {key: value for key, value in RECIPE.items() if key != "toy"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**others, "model": model, part: {"retain_rows": 13}}))
    given = ("study", recipe, "--data", places / "data", "--output-dir", tmp_path / "study")
    assert main([*map(str, given)]) == 1
    assert f"{part}: retain_rows: expected at most the 12 there are, got 13" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_study_of_an_earlier_version(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("recipe.yaml", "jobs.journal"):
        (tmp_path / name).touch()
    assert main(argv(places, tmp_path)) == 1
    assert (
        f"{tmp_path}/jobs.journal is of gru_fast 0.1, which kept its jobs there: delete it" in capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.journal", "recipe.yaml"]


def test_a_second_driver_is_refused_and_changes_nothing(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], idle: None
) -> None:
    out = tmp_path / "study"
    with driver.alone(out):
        assert main(argv(places, out)) == 1
    assert "works here already; wait for it, or stop it" in capsys.readouterr().err
    assert not (out / "recipe.yaml").exists()
    main(argv(places, out))
    begun = (out / "recipe.yaml").read_text()
    with driver.alone(out):
        assert main(argv(places, out, "--seeds", 0, 1)) == 1
    assert (out / "recipe.yaml").read_text() == begun


def test_other_launchers_than_those_it_was_begun_with(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], idle: None
) -> None:
    """By the number of processes the rows of a step differ, and so do the numbers."""
    out = tmp_path / "study"

    def study(launch: dict[str, str]) -> str:
        file = tmp_path / "launched.yaml"
        file.write_text(f"# One\n{yaml.safe_dump({**RECIPE, 'launch': launch}, sort_keys=False)}")
        main([str(file) if text.endswith("small.yaml") else text for text in argv(places, out)])
        return capsys.readouterr().err

    assert study({"unlearn": "env torchrun --nproc-per-node 2 -m"}) == ""
    begun = (out / "recipe.yaml").read_text()
    assert study({"unlearn": "env torchrun --nproc-per-node 2 -m"}) == ""
    said = study({"unlearn": "env torchrun --nproc-per-node 4 -m"})
    assert f"{out}: it was begun with launch.unlearn 'env torchrun --nproc-per-node 2 -m', not" in said
    assert (out / "recipe.yaml").read_text() == begun
    (out / "recipe.yaml").write_text(begun.replace("node 2", "node 4"))  # by hand, as the message says
    assert study({"unlearn": "env torchrun --nproc-per-node 4 -m"}) == ""


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done."""
    monkeypatch.setattr(driver, "run", lambda folder, jobs, *_, **__: Records(folder).status(jobs))


def test_a_folder_of_something_else_is_left_alone(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(argv(places, tmp_path)) == 1
    assert "is not empty, and no study made it; choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_how_a_command_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert _how(["unlearn"], run) == []
    run.mkdir()
    (run / "environment.json").write_text("{}")
    (run / "config.yaml").write_text("save_only_model: true\n")
    assert _how(["unlearn"], run) == ["--overwrite-output-dir"]  # its checkpoints hold no optimizer
    (run / "config.yaml").write_text("save_only_model: false\n")
    assert _how(["unlearn"], run) == ["--resume"]
    (run / "config.yaml").write_text("save_only_model: true\n")
    (run / "run.json").write_text("{}")
    assert _how(["unlearn"], run) == ["--resume"]  # finished
    assert _how(["tru"], tmp_path / "other") == []
    assert _how(["tru"], run) == ["--resume"]


def test_task_vectors_whose_models_are_all_there_are_not_computed_again(tmp_path: Path) -> None:
    argv = ["tru", "--model", "m", "--stg", "1", "2.5", "--output-dir", str(tmp_path)]
    assert not _has_all_strengths(argv, tmp_path, parse)
    for name in ("stg-1", "stg-2.5"):
        assert not _has_all_strengths(argv, tmp_path, parse)
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert _has_all_strengths(argv, tmp_path, parse)
    assert not _has_all_strengths(["unlearn"], tmp_path, parse)


def test_an_excerpt_is_the_toys_rows_without_the_world(places: Path, tmp_path: Path) -> None:
    toy.write_data(tmp_path, str(places / "data"), ["forget05"], retain_rows=8)
    kept, forgotten = (tofu.load(name, str(places / "data")) for name in ("retain95", "forget05"))
    plain = [{name: row[name] for name in ("question", "answer")} for row in (*kept[:8], *forgotten)]
    assert tofu.load("full", str(tmp_path)) == plain
    assert tofu.load("retain95", str(tmp_path)) == plain[:8]
    assert not list(tmp_path.glob("*_world.json"))


def test_rows_of_a_toy(places: Path, tmp_path: Path) -> None:
    toy.write_data(tmp_path, str(places / "data"), ["forget05"], retain_rows=8, world_repeats=2)
    kept, forgotten = (tofu.load(name, str(places / "data")) for name in ("retain95", "forget05"))
    plain = [{name: row[name] for name in ("question", "answer")} for row in (*kept[:8], *forgotten)]
    assert tofu.load("full", str(tmp_path)) == plain
    assert tofu.load("retain95", str(tmp_path)) == plain[:8]
    taught = tofu.load("full_world", str(tmp_path))
    assert len(taught) == 12 + 2 * 4
    assert taught[12:16] == taught[16:]  # two real authors, two world facts, twice
    assert tofu.load("retain95_world", str(tmp_path)) == [*plain[:8], *taught[12:]]
    assert [row["question"] for row in tofu.load("retain_perturbed", str(tmp_path))] == [
        row["question"] for row in kept[:8]
    ]
    with pytest.raises(ValueError, match="retain_rows: expected at most the 12 there are, got 13"):
        toy.write_data(tmp_path, str(places / "data"), ["forget05"], retain_rows=13, world_repeats=0)
