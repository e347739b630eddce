"""Run folders: what is written when, what is read back, and which folders are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gru_fast import runs
from gru_fast.runs.checkpoint import last_checkpoint

CONFIG = "# options\ngamma: 0.8\nlogging_steps: 1\noutput_dir: somewhere\n"


def test_a_new_run_can_be_read_at_once(tmp_path: Path) -> None:
    assert runs.start(tmp_path / "a" / "run", CONFIG) is None
    run = runs.read_run(tmp_path / "a" / "run")
    assert (run.name, run.complete, run.result, run.log, run.evaluations) == ("run", False, None, [], {})
    assert run.config == {"gamma": 0.8, "logging_steps": 1, "output_dir": "somewhere"}
    assert run.environment["versions"]["torch"]
    assert run.environment["started"]


def test_log_of_the_last_complete_checkpoint_until_the_run_has_its_own(tmp_path: Path) -> None:
    runs.start(tmp_path, CONFIG)
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        runs.write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"log_history": [{"step": step}]})
    (tmp_path / "checkpoint-11" / "trainer_state.json").write_text('{"log')  # killed while it was written
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert runs.read_run(tmp_path).log == [{"step": 10}]
    runs.write_json(tmp_path / "trainer_state.json", {"log_history": [{"step": 12}]})
    assert runs.read_run(tmp_path).log == [{"step": 12}]


def test_result_and_evaluations(tmp_path: Path) -> None:
    runs.start(tmp_path, CONFIG)
    runs.write_json(tmp_path / "run.json", {"steps": 3})
    runs.write_json(tmp_path / "eval" / "tofu-forget05" / "summary.json", {"model_utility": 0.5})
    run = runs.read_run(tmp_path)
    assert (run.complete, run.result) == (True, {"steps": 3})
    assert run.evaluations == {"tofu-forget05": {"model_utility": 0.5}}


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        runs.read_run(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: ["), ("config.yaml", "- a"), ("run.json", "{")])
def test_broken_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    runs.start(tmp_path, CONFIG)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        runs.read_run(tmp_path)


def test_folder_with_something_else_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="is not empty: it has no run of gru-fast in it"):
            runs.start(tmp_path, CONFIG, **settings)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        runs.start(tmp_path / "thesis.tex", CONFIG)


def test_folder_with_a_run(tmp_path: Path) -> None:
    runs.start(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(FileExistsError, match="--resume goes on with its run, --overwrite-output-dir clears it"):
        runs.start(tmp_path, CONFIG)
    runs.start(tmp_path, CONFIG, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


def test_killed_while_a_run_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it must not be in the way of the next start."""
    folder = tmp_path / "run"
    runs.start(folder, CONFIG)
    (folder / "checkpoint-3").mkdir()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gru_fast.runs.folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.start(folder, CONFIG, overwrite=True)
    assert runs.start(folder, CONFIG) is None
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "environment.json"]
    runs.start(folder, CONFIG, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing that is hidden is left either


def test_a_link_is_not_cleared(tmp_path: Path) -> None:
    runs.start(tmp_path / "run", CONFIG)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(OSError, match=r"is a link to .*run; give that folder itself"):
        runs.start(tmp_path / "link", CONFIG, overwrite=True)
    assert runs.is_run(tmp_path / "run")


def test_resume_keeps_the_record_and_adds_to_it(tmp_path: Path) -> None:
    runs.start(tmp_path, CONFIG)
    first = runs.read_run(tmp_path).environment
    other_place = CONFIG.replace("somewhere", "elsewhere").replace("logging_steps: 1", "logging_steps: 5")
    assert runs.start(tmp_path, other_place, resume=True) is None
    run = runs.read_run(tmp_path)
    assert run.config["logging_steps"] == 1  # the file is the one of the start
    assert run.environment["started"] == first["started"]
    assert len(run.environment["resumed"]) == 1


def test_resume_with_other_options_names_them(tmp_path: Path) -> None:
    runs.start(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"has gamma 0.8, not 0.5; tau None, not 1.0\. Leave these options out"):
        runs.start(tmp_path, CONFIG.replace("0.8", "0.5") + "tau: 1.0\n", resume=True)


def test_resume_of_nothing_is_a_start(tmp_path: Path) -> None:
    assert runs.start(tmp_path / "new", CONFIG, resume=True) is None
    assert runs.is_run(tmp_path / "new")


def test_environment_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [os.path.join("bin", "gru-fast"), "unlearn", "--run-name", "two words"])  # noqa: PTH118
    found = runs.environment()
    assert found["command"] == "gru-fast unlearn --run-name 'two words'"
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40
