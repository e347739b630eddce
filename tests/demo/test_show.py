"""`gru-fast demo --quick` from beginning to end: what it leaves, what it prints, and that a stopped one goes on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gru_fast.cli import main
from gru_fast.demo import stages
from gru_fast.demo.stages import Places
from gru_fast.report.collect import collect, steps
from gru_fast.report.figures import FORGET_PROBABILITY, RETAIN_PROBABILITY
from gru_fast.runs.folder import read_run

pytestmark = pytest.mark.slow
NAMES = ("original", "retrained", "ga", "ga-gru", "gd", "gd-gru", "npo", "npo-gru")
TITLES = ("before", "retrained", "GA", "GA + GRU", "GD", "GD + GRU", "NPO", "NPO + GRU")


def demo(folder: Path, *flags: str) -> int:
    return main(["demo", "--quick", "--output", str(folder), *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A demo that ran through at once, and what it printed in ``printed.txt``."""
    folder = tmp_path_factory.mktemp("demo")
    capture = pytest.MonkeyPatch()
    said: list[str] = []
    with capture.context() as patch:
        patch.setattr("sys.stdout.write", said.append)
        assert demo(folder / "whole") == 0
    (folder / "printed.txt").write_text("".join(said))
    return Places(folder / "whole")


@pytest.fixture
def printed(whole: Places) -> str:
    return (whole.folder.parent / "printed.txt").read_text()


def test_it_leaves_ordinary_run_folders(whole: Places) -> None:
    assert [folder.name for folder in whole.runs()] == list(NAMES)
    for folder in whole.runs():
        run = read_run(folder)
        assert run.complete
        assert list(run.evaluations) == ["tofu-forget10"]
        assert (folder / "model.safetensors").is_file()
    made = {entry.run.folder.name: (entry.title, entry.rectified, entry.note) for entry in collect(whole.runs())}
    assert made["original"] == ("Original", False, "")
    assert made["retrained"] == ("Retrained (retain90_and_knowledge)", False, "")
    assert made["npo-gru"] == ("NPO", True, "")
    assert made["npo"] == ("NPO", False, "")


def test_runs_have_logged_what_the_figures_show(whole: Places) -> None:
    for entry in collect(whole.runs()):
        if entry.is_unlearned:
            assert steps(entry, "cos")[0] == steps(entry, "retain_loss")[0] == list(range(1, 13))
            assert steps(entry, FORGET_PROBABILITY)[0] == steps(entry, RETAIN_PROBABILITY)[0] == [0, 6, 12]
            before, after = (steps(entry, name)[1] for name in ("angle_before", "angle_after"))
            expected = [min(angle, 90.0) if entry.rectified else angle for angle in before]
            assert after == pytest.approx(expected, abs=0.01)
            assert max(before) > 90 or entry.title == "GD"


def test_baselines_differ_from_their_rectified_runs_in_nothing_else(whole: Places) -> None:
    for method in ("ga", "gd", "npo"):
        plain, rectified = (read_run(whole.unlearned(method, rectify)).config for rectify in (False, True))
        differing = {name for name in {**plain, **rectified} if plain.get(name) != rectified.get(name)}
        assert differing == {"rectify", "monitor", "output_dir"}


def test_forget_quality_is_against_the_retrained_model(whole: Places) -> None:
    qualities = {run.name: read_run(run).evaluations["tofu-forget10"]["forget_quality"] for run in whole.runs()}
    assert qualities["retrained"] == {"p": 1.0, "log_p": 0.0, "statistic": 0.0, "n": 8}
    assert all(quality["n"] == 8 for quality in qualities.values())
    assert qualities["original"]["p"] < 1.0


def test_tables_and_figures(whole: Places) -> None:
    figures = {f"{name}.{suffix}" for name in ("steps", "angles", "tradeoff", "path") for suffix in ("png", "svg")}
    assert {path.name for path in whole.report.iterdir()} == {"table.md", "table.csv", *figures}


def test_what_it_prints(printed: str) -> None:
    assert "RESULTS (hardly trained: the numbers mean nothing)" in printed
    table = printed.partition("RESULTS")[2].partition("HOW TO READ THEM")[0]
    assert tuple(re.findall(r"^  (\S+(?: \+ GRU)?) +-?\d", table, re.MULTILINE)) == TITLES
    for title in TITLES:
        assert re.search(rf"^   {re.escape(title)} +\d+ steps +\d+\.\d s", printed, re.MULTILINE), title
    for heading in ("WHAT GRU CHANGES", "WHAT THEY WRITE", "FIGURES in", "GO ON"):
        assert heading in printed
    assert re.search(r"\n\d+ s in all\. Everything is in .*whole\n$", printed)


def test_commands_it_ends_with_run(whole: Places, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = printed.partition("GO ON\n\n")[2].split("\n\n")[0].splitlines()
    assert len(commands) == 3
    for command in commands:
        name, *argv = shlex.split(command)
        assert name == "gru-fast"
        assert main(argv) == 0, capsys.readouterr().err
    more = read_run(whole.folder / "runs" / "ga-gru-0.8")
    assert more.config["gamma"] == 0.8
    assert more.evaluations["tofu-forget10"]["forget_quality"]["n"] == 8
    assert "ga-gru-0.8" in capsys.readouterr().out  # in the report


def test_a_second_start_does_nothing_again(
    whole: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(stages, "_train", never)
    times = {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in whole.runs()}
    assert demo(whole.folder) == 0
    assert capsys.readouterr().out.count("there already") == len(NAMES)
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in whole.runs()} == times


def test_a_stopped_demo_goes_on_and_ends_the_same(
    whole: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the midst of its fourth run: three are kept, the fourth begins anew."""
    begun: list[str] = []
    on_step_end = stages._PathCallback.on_step_begin

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == "ga-gru" and state.global_step == 5:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stages._PathCallback, "on_step_begin", stop)
        assert demo(tmp_path / "again") == 130
    capsys.readouterr()
    train = stages._train

    def watched(trainer: Any, *args: Any) -> Any:
        begun.append(Path(trainer.args.output_dir).name)
        return train(trainer, *args)

    monkeypatch.setattr(stages, "_train", watched)
    assert demo(tmp_path / "again") == 0
    assert begun == list(NAMES[3:])
    assert capsys.readouterr().out.count("there already") == 3
    again = Places(tmp_path / "again")
    for ours, theirs in zip(again.runs(), whole.runs(), strict=True):
        weights, expected = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
        assert all((weights[name] == tensor).all() for name, tensor in expected.items()), ours.name
        scores, goal = (read_run(folder).evaluations["tofu-forget10"] for folder in (ours, theirs))
        assert scores["components"] == goal["components"]
        assert scores["forget_quality"] == goal["forget_quality"]


def test_folders_that_are_refused(whole: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    for folder, flags, message in (
        (tmp_path / "file", [], "--output: expected a folder, got the file"),
        (tmp_path / "thesis", ["--overwrite"], "thesis is not empty, and no demo made it; give another folder"),
        (whole.folder, ["--seed", "1"], "holds a demo with seed 0; --overwrite replaces it, --output goes elsewhere"),
    ):
        assert demo(folder, *flags) == 1
        found = capsys.readouterr()
        assert message in found.err
        assert found.err.count("\n") == 1
        assert found.out == ""
    assert (tmp_path / "thesis" / "thesis.tex").is_file()
    assert json.loads((whole.folder / stages.MARK).read_text())["seed"] == 0
