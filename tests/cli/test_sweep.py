"""gru-fast sweep on a tiny model: runs, going on after a kill, sharing, refusals."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tofu_folders import save_data, save_model

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.jobs import driver
from gru_fast.runs.records import Job, Records, Status

TRAINING = ("--use-cpu", "--disable-tqdm", "--save-strategy", "no", "--gradient-accumulation-steps", 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model, and a retrained one's evaluation; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    save_model(folder / "model")
    save_model(folder / "retrained", seed=1)
    small = ("--max-length", 48, "--max-rows", 4, "--data", folder / "data", "--split", "forget05")
    assert main([str(text) for text in ("eval", "tofu", "--model", folder / "retrained", *small)]) == 0
    return folder


def argv(places: Path, out: Path, *more: Any, **changed: Any) -> list[str]:
    """A sweep of two gammas and two taus, two steps a run."""
    settings = {
        "--model": places / "model",
        "--data": places / "data",
        "--retain-logs": places / "retrained",
        "--output-dir": out,
        "--learning-rate": 0.01,
        "--num-train-epochs": 1,
        "--per-device-train-batch-size": 2,
        **{f"--{name.replace('_', '-')}": value for name, value in changed.items()},
    }
    flags = [text for pair in settings.items() if pair[1] is not None for text in pair]
    grid = ["--gammas", "0.1", "0.8", "--taus", "1", "none"]
    evaluation = ["--eval-options", "max_length=48", "max_rows=4"]
    return [str(text) for text in ("sweep", *TRAINING, *flags, *grid, *evaluation, *more)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gru-fast sweep: ")]
    assert len(lines) == 1
    return lines[0]


def states(out: Path) -> dict[str, str]:
    jobs = [Job(name) for name in ("original", *GRID)]
    return {name: job.state for name, job in Records(out).status(jobs).items()}


GRID = [f"npo-gamma{gamma}-tau{tau}" for gamma in ("0.1", "0.8") for tau in ("1", "none")]


def test_a_grid(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert main(argv(places, out)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 5 jobs\n")
    assert "written to" in printed
    for name in GRID:
        run = runs.read_run(out / "runs" / name)
        assert run.complete
        gamma, tau = name.removeprefix("npo-gamma").split("-tau")
        assert (run.config["gamma"], run.config["tau"]) == (float(gamma), None if tau == "none" else float(tau))
        assert (run.config["rectify"], run.config["method"]) == (True, "npo")
        assert f"--gamma {gamma} --tau" in run.environment["command"]
        assert "tofu-forget05" in run.evaluations
        assert not list((out / "runs" / name).glob("*.safetensors"))  # evaluated, and not asked to be kept
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == GRID
    assert all(row["state"] == "done" and float(row["FQ (ln p)"]) <= 0 for row in rows)
    assert "| Original |" in (out / "table.md").read_text()
    assert (out / "heatmap-npo.png").is_file()

    # What the sweep has done is what the commands do by hand.
    by_hand = tmp_path / "by-hand"
    config = str(out / "runs" / GRID[2] / "config.yaml")
    assert main(["unlearn", "--config", config, "--output-dir", str(by_hand)]) == 0
    first, second = (runs.read_run(folder).log for folder in (out / "runs" / GRID[2], by_hand))
    assert [row["cos"] for row in first if "cos" in row] == [row["cos"] for row in second if "cos" in row]

    # Once more: nothing is left to do.
    before = (out / "results.csv").read_text()
    capsys.readouterr()
    assert main(argv(places, out)) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 5 jobs, 5 of them over\n\nmethod")
    assert (out / "results.csv").read_text() == before


def test_killed_and_started_again(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "gru_fast.cli", *argv(places, out, num_train_epochs=200)]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not runs.is_run(out / "runs" / GRID[1]) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the command and its worker
    process.wait()
    done = runs.read_run(out / "runs" / GRID[0])
    assert done.complete
    assert not runs.read_run(out / "runs" / GRID[1]).complete
    found = states(out)
    assert (found["original"], found[GRID[0]], found[GRID[1]], found[GRID[2]]) == ("done", "done", "waiting", "waiting")

    assert main(argv(places, out, num_train_epochs=200)) == 0
    assert set(states(out).values()) == {"done"}
    assert runs.read_run(out / "runs" / GRID[0]).result == done.result  # not done again
    assert len(runs.read_run(out / "runs" / GRID[1]).environment["resumed"]) == 1
    assert "5 jobs, 2 of them over" in capsys.readouterr().out


def test_failure_is_named_and_the_rest_goes_on(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    (out / "settings").mkdir(parents=True)
    in_the_way = out / "runs" / GRID[1]
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("not a run")
    assert main(argv(places, out)) == 1
    printed = capsys.readouterr().out
    log = out / "logs" / f"{GRID[1]}.log"
    assert f"{GRID[1]}  failed: FileExistsError: output folder {in_the_way} is not empty" in printed
    assert f"; see {log}" in printed
    assert "Traceback" in log.read_text()
    assert states(out) == {"original": "done", **dict.fromkeys(GRID, "done"), GRID[1]: "failed"}
    assert "| NPO | 0.8 | FQ |" in (out / "table.md").read_text()
    assert f"- `{GRID[1]}` failed: FileExistsError" in (out / "table.md").read_text()

    shutil.rmtree(in_the_way)
    assert main(argv(places, out)) == 1  # failed stays failed
    assert main(argv(places, out, "--retry-failed")) == 0
    assert states(out)[GRID[1]] == "done"


def test_drawn_points_pruning_and_kept_models(places: Path, tmp_path: Path) -> None:
    """TPE, two workers; a run that keeps nothing on the way is given up."""
    out = tmp_path / "sweep"
    more = ("--sampler", "tpe", "--trials", 3, "--taus", "0.1", "10", "--prune", "--share", 1, "--keep-models")
    assert main(argv(places, out, *more, num_train_epochs=2, workers=2, learning_rate=10.0)) == 0
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["npo-tpe000", "npo-tpe001", "npo-tpe002"]
    utility = (Records(out).read("original") or {})["facts"]["MU"]
    for row in rows:
        if utility == 0:  # nothing to keep: nothing can be out of reach
            assert row["state"] == "done"
            assert (out / "runs" / row["run"] / "model.safetensors").is_file()
        assert 0.1 <= float(row["gamma"]) <= 0.8
        assert 0.1 <= float(row["tau"]) <= 10
        assert f"--gamma {row['gamma']} " in runs.read_run(out / "runs" / row["run"]).environment["command"]
    assert len({row["gamma"] for row in rows}) == 3


def test_several_methods_with_a_recipes_overrides(places: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_steps: 1\nmethods:\n  npo: {method_options: {beta: 0.3}, tau: 0.5}\n")
    out = tmp_path / "sweep"
    more = ("--config", recipe, "--objectives", "ga", "npo")
    command = argv(places, out, *more)
    at = command.index("--gammas")
    del command[at : at + 6]
    assert main([*command, "--gammas", "0.8", "--taus", "1"]) == 0
    config = runs.read_run(out / "runs" / "npo-gamma0.8-tau1").config
    assert (config["method_options"], config["tau"], config["max_steps"]) == ({"beta": 0.3}, 1.0, 1)
    assert runs.read_run(out / "runs" / "ga-gamma0.8-tau1").complete


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """Nothing is done; the files of the settings when it would have been."""
    found: list[dict[str, bytes]] = []

    def run(folder: Path, jobs: list[Job], *_: Any) -> dict[str, Status]:
        found.append(settings_of(folder))
        return Records(folder).status(jobs)

    monkeypatch.setattr(driver, "run", run)
    return found


def settings_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "settings").glob("*")}


def test_settings_are_there_before_the_jobs(places: Path, tmp_path: Path, idle: list[dict[str, bytes]]) -> None:
    assert main(argv(places, tmp_path / "sweep")) == 0
    assert main(argv(places, tmp_path / "sweep")) == 0
    assert sorted(idle[0]) == ["eval.yaml", "npo.yaml", "sweep.json"]
    assert idle[1] == idle[0]


def test_a_second_driver_is_refused_and_changes_nothing(
    places: Path, tmp_path: Path, idle: list[dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    with driver.alone(out):  # not even begun
        assert main(argv(places, out)) == 1
    assert "works here already; wait for it, or stop it" in said(capsys)
    assert not settings_of(out)
    assert main(argv(places, out)) == 0
    begun = settings_of(out)
    with driver.alone(out):
        assert main(argv(places, out, "--objectives", "ga")) == 1
    assert settings_of(out) == begun
    assert len(idle) == 1


def test_report_of_what_is_done_so_far(
    places: Path, tmp_path: Path, idle: list[dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main(argv(places, out, "--report")) == 1
    assert f"FileNotFoundError: {out}: no sweep in it; leave --report out to begin it" in said(capsys)
    assert not out.exists()

    assert main(argv(places, out)) == 0
    specs = {"original": {}, GRID[0]: {"method": "npo", "gamma": 0.1, "tau": 1.0}}
    for (name, spec), value in zip(specs.items(), (-30.0, -4.0), strict=True):
        status = Status(name, spec, state="done", facts={"FQ (ln p)": value, "MU": 0.5})
        Records(out).end(Job(name, spec), status)
    before = states(out)
    capsys.readouterr()
    assert main(argv(places, out, "--report", "--retry-failed")) == 0
    assert len(idle) == 1  # no work was done for it
    assert states(out) == before
    assert list(before.values()) == ["done", "done", "waiting", "waiting", "waiting"]
    assert "NPO         0.1    1    -4.0000  0.5000  1 of 4" in capsys.readouterr().out
    assert "| NPO | 0.1 | 1 | -4.0000 | 0.5000 | 1 of 4 | 0 | 0 |" in (out / "table.md").read_text()
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "waiting", "waiting", "waiting"]
    assert (out / "heatmap-npo.png").is_file()

    # A report of other options would be of something else.
    assert main(argv(places, out, "--report", "--learning-rate", "0.5")) == 1
    assert "learning_rate 0.01, not 0.5" in said(capsys)


def test_a_sweep_of_an_earlier_version_is_taken_over(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its database goes, and what is whole in runs/ is found done: nothing is trained again."""
    out = tmp_path / "sweep"
    assert main(argv(places, out)) == 0
    before, trained = (out / "results.csv").read_text(), runs.read_run(out / "runs" / GRID[0]).result
    shutil.rmtree(out / "jobs")
    (out / "sweep.db").touch()
    capsys.readouterr()
    assert main(argv(places, out)) == 1
    assert f"{out}/sweep.db is of gru_fast 0.1, which kept its jobs there: delete it and start the same" in said(capsys)
    (out / "sweep.db").unlink()
    assert main(argv(places, out)) == 0
    assert (out / "results.csv").read_text() == before
    assert runs.read_run(out / "runs" / GRID[0]).result == trained


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--gamma", "0.5"], "--gamma: a sweep goes over values of it; give --gammas"),
        (["--tau", "1"], "--tau: a sweep goes over values of it; give --taus"),
        (["--gammas", "1.5"], "gammas: gamma: expected a number in [0, 1]"),
        (["--taus", ""], "taus: expected at least one value, got none"),
        (["--objectives", "npoo"], "got 'npoo'; did you mean \"npo\"?"),
        (["--method", "npoo"], "--method: expected one of "),
        (["--eval-options", "max_row=3"], 'eval_options: gru-fast eval tofu has no option "max_row"; did you mean'),
        (["--eval-options", "max_rows=many"], "eval_options: --max-rows: expected a whole number, got 'many'"),
        (["--eval-options", "split=forget01"], "eval_options: split is the sweep's to say; leave it out"),
        (["--storage", "sqlite:///x.db"], "--storage: no option any more; machines share a study or sweep as a Ray"),
        (["--devices", "0", "1"], "--devices: no option any more; give --gpus-per-run"),
        (["--patience", "60"], "--patience: no option any more; Ray sees to machines that die"),
        (["--workers", "0"], "workers: expected a whole number of at least 1, got 0"),
        (["--gpus-per-run", "1.5"], "gpus_per_run: expected a whole number, or a share below 1, got 1.5"),
        (["--model", "/nowhere/model"], "model: no folder or file /nowhere/model"),
        (["--retain-logs", "/nowhere/log"], "/nowhere/log: no such file or folder"),
        (["--learning-rate", "fast"], "--learning-rate: expected a number, got 'fast'"),
    ],
)
def test_wrong_uses(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    out = tmp_path / "sweep"
    assert main([*argv(places, out), *more]) == 1
    assert expected in said(capsys)
    assert not out.exists() or not any(out.iterdir())


def test_retained_model_must_be_given(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv(places, tmp_path / "sweep", retain_logs=None)) == 1
    assert "retain_logs: no value; give --retain-logs" in said(capsys)


def test_folder_with_something_else(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert main(argv(places, tmp_path)) == 1
    assert f"output folder {tmp_path} is not empty, and no sweep made it" in said(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_print_config_writes_nothing(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv(places, tmp_path / "sweep"), "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["gammas"], printed["taus"], printed["sampler"]) == ([0.1, 0.8], [1.0, None], "grid")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--gammas", "0.2"], "gammas [0.1, 0.8], not [0.2]"),
        (["--split", "forget01"], "split 'forget05', not 'forget01'"),
        (["--learning-rate", "0.5"], "learning_rate 0.01, not 0.5"),
        (["--method-options", "beta=0.5"], "method_options None, not {'beta': 0.5}"),
        (["--eval-options", "max_rows=3"], "evaluation.max_rows 4, not 3"),
        (["--sampler", "tpe", "--taus", "1", "2"], "sampler 'grid', not 'tpe'"),
    ],
)
def test_a_folder_of_other_settings(
    places: Path,
    tmp_path: Path,
    idle: list[dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    out = tmp_path / "sweep"
    assert main(argv(places, out)) == 0
    files = {path: path.read_bytes() for path in (out / "settings").iterdir()}
    if "--split" in more:  # Forget Quality is only had against the same questions
        more = [*more, "--retain-logs", str(places / "retrained" / "eval" / "tofu-forget05")]
    assert main([*argv(places, out), *more]) == 1
    line = said(capsys)
    assert f'{out}: "' in line
    assert expected in line
    assert {path: path.read_bytes() for path in (out / "settings").iterdir()} == files
    assert set(states(out).values()) == {"waiting"}
    assert len(idle) == 1


@pytest.mark.slow
def test_a_sweep_over_own_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import own_files

    data, model, out = (
        own_files.save_data(tmp_path / "data"),
        own_files.save_model(tmp_path / "model"),
        tmp_path / "sweep",
    )
    argv = [
        "sweep",
        "--benchmark",
        "own",
        "--model",
        model,
        "--forget",
        data / "forget",
        "--retain",
        data / "retain.jsonl",
    ]
    argv += ["--method", "ga", "--gammas", 0.5, "--taus", 1, "none", "--max-length", 16, "--num-train-epochs", 1]
    command = [*map(str, argv), "--use-cpu", "--workers", "1", "--output-dir", str(out)]
    assert main([*command, "--prune"]) == 1
    assert "prune: is for TOFU's evaluation, not for that of own; leave it out" in capsys.readouterr().err
    assert main(command) == 0
    assert "ES forget" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert all(0 < float(row["Prob retain"]) < 1 for row in rows)
    assert (out / "heatmap-ga.png").is_file()
    assert main(["sweep", "--benchmark", "muse", "--model", str(model), "--output-dir", str(out)]) == 1
    assert "benchmark: a sweep judges runs on tofu or own, got muse" in capsys.readouterr().err
