"""`gru-fast unlearn --eval-epochs`: scores along a run, the best model by the rule, a stop and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tofu_folders import save_data, save_model, teach

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.cli.commands import unlearn as unlearn_command
from gru_fast.evaluation import points as along_run
from gru_fast.evaluation.epochs import EpochEvaluations
from gru_fast.evaluation.judge import JUDGES, TOFU
from gru_fast.evaluation.scoring import DivergedError

EPOCHS = ("--eval-epochs", 1, "--eval-options", "max_rows=4", "--share", 0.5)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model that knows it, the evaluation of another, and a run with --eval-epochs."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    save_model(folder / "model")
    teach(folder / "model", folder / "data", epochs=20)
    save_model(folder / "retained", seed=1)
    how = ("--split", "forget05", "--data", folder / "data", "--device", "cpu", "--template", "phi")
    assert run("eval", "tofu", "--model", folder / "retained", *how) == 0
    assert unlearn(folder, folder / "run", *EPOCHS) == 0
    return folder


def run(*argv: Any) -> int:
    return main([str(word) for word in argv])


def unlearn(places: Path, out: Path, *argv: Any) -> int:
    """Four rows, two a step, three epochs: six steps."""
    settings = {
        "--model": places / "model",
        "--data": places / "data",
        "--template": "phi",
        "--split": "forget05",
        "--retain-logs": places / "retained",
        "--method": "gd",
        "--per-device-train-batch-size": 2,
        "--gradient-accumulation-steps": 1,
        "--num-train-epochs": 3,
        "--learning-rate": 3e-4,
        "--save-strategy": "epoch",
        "--output-dir": out,
    }
    if "--eval-epochs" not in argv or "1" in argv:
        del settings["--retain-logs"]
    return run("unlearn", "--use-cpu", "--disable-tqdm", *(word for pair in settings.items() for word in pair), *argv)


def read_points(folder: Path) -> tuple[list[along_run.Point], int | None]:
    """The scores along a run, and the step of the best."""
    found = along_run.read(folder)
    assert found is not None
    return list(found.points), None if found.best is None else found.best.step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_scores_are_those_of_gru_fast_eval(places: Path, tmp_path: Path) -> None:
    points, best = read_points(places / "run")
    assert [(point.step, point.epoch) for point in points] == [(0, 0.0), (2, 1.0), (4, 2.0), (6, 3.0)]
    assert points[0].utility is not None
    assert points[0].utility > 0
    how = ("--data", places / "data", "--split", "forget05", "--retain-logs", places / "retained", "--device", "cpu")
    for model, point in ((places / "model", points[0]), (places / "run", points[-1])):
        out = tmp_path / model.name
        assert (
            run("eval", "tofu", "--model", model, *how, "--template", "phi", "--max-rows", 4, "--output-dir", out) == 0
        )
        summary = json.loads((out / "summary.json").read_text())
        assert point.utility == pytest.approx(summary["model_utility"], rel=1e-5)
        assert point.quality == pytest.approx(summary["forget_quality"]["log_p"])
    logged = [entry for entry in runs.read_run(places / "run").log if "eval_MU" in entry]
    assert [(entry["step"], entry["eval_MU"], entry["eval_FQ"]) for entry in logged] == [
        (point.step, point.utility, point.quality) for point in points
    ]
    place = TOFU.best_of([(p.quality, p.utility) for p in points[1:]], 0.5 * points[0].utility)
    assert best == (None if place is None else points[1:][place].step)


def test_the_report_names_the_best_epoch(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points, best = read_points(places / "run")
    [point] = [point for point in points if point.step == best]
    capsys.readouterr()
    assert run("report", places / "run") == 0
    shown = capsys.readouterr().out
    assert "best epoch" in shown
    assert f" {point.epoch:g}: FQ {point.quality:.2f}, MU {point.utility:.4f} " in shown


def test_what_is_trained_is_the_same_without(places: Path, tmp_path: Path) -> None:
    assert unlearn(places, tmp_path / "run") == 0
    assert same(tmp_path / "run", places / "run")


def test_the_best_model_is_kept_and_can_be_evaluated(places: Path, tmp_path: Path) -> None:
    points, best = read_points(places / "run")
    assert best is not None
    assert same(places / "run" / "best", places / "run" / f"checkpoint-{best}")
    assert not list((places / "run" / "epochs").glob("*/model*"))
    out = tmp_path / "eval"
    how = ("--retain-logs", places / "retained", "--max-rows", 4, "--device", "cpu", "--output-dir", out)
    assert run("eval", "tofu", "--model", places / "run" / "best", *how) == 0  # split, data, template: the run's
    [point] = [point for point in points if point.step == best]
    assert json.loads((out / "summary.json").read_text())["model_utility"] == pytest.approx(point.utility, rel=1e-5)


def test_a_stopped_run_goes_on_to_the_same_scores_and_best_model(places: Path, tmp_path: Path) -> None:
    """As if it had been killed in the third epoch, after the evaluation, before its checkpoint."""
    stopped = tmp_path / "run"
    shutil.copytree(places / "run", stopped)
    for name in ("run.json", "trainer_state.json", "model.safetensors"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "checkpoint-6")
    assert run("unlearn", "--resume", "--output-dir", stopped) == 0
    assert read_points(stopped) == read_points(places / "run")
    assert same(stopped, places / "run")
    assert same(stopped / "best", places / "run" / "best")
    assert sorted(path.name for path in (stopped / "epochs").iterdir()) == ["0", "2", "4", "6"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--eval-epochs", 0), "eval_epochs: expected a whole number of at least 1, got 0"),
        (("--eval-epochs", 1, "--share", 1.5), "share: expected a number in [0, 1], got 1.5"),
        (("--eval-epochs", 1, "--eval-options", "max_row=3"), 'gru-fast eval tofu has no option "max_row"'),
        (("--eval-epochs", 1, "--eval-options", "split=forget01"), "eval_options: split is not to be chosen there"),
        (("--eval-epochs", 1, "--eval-options", "max_rows=-1"), "eval_options: max_rows: expected at least 0, got -1"),
        (("--eval-options", "quick=true"), "eval_options: expected eval_epochs as well"),
        (
            ("--eval-epochs", 1, "--benchmark", "muse", "--split", "forget"),
            "judged on tofu or own, got muse",
        ),
        (("--eval-epochs", 1, "--retain-logs", "/no/where"), "/no/where: no such file or folder"),
        (("--eval-epochs", "1"), "eval_epochs: expected retain_logs as well"),
    ],
)
def test_wrong_uses(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[Any, ...], message: str
) -> None:
    assert unlearn(places, tmp_path / "run", *argv) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("fsdp2", "zero3"), [(True, False), (False, True)])
def test_models_that_no_process_has_whole_are_refused(fsdp2: bool, zero3: bool) -> None:
    trainer = SimpleNamespace(args=None, is_sharded=fsdp2, is_for_zero3=zero3)
    with pytest.raises(ValueError, match="eval_epochs: not with FSDP2 or ZeRO-3"):
        unlearn_command._evaluate_epochs(trainer, "tofu", None, None, None)


# ---- the callback by itself ------------------------------------------------------------------------------------------


class State:
    """As much of a trainer's state as the callback reads."""

    def __init__(self, step: int = 0, epoch: float = 0.0, most: int = 4) -> None:
        self.global_step, self.epoch, self.max_steps = step, epoch, most


class Saved:
    """A model that is its step."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.step >= 0:
            (folder / "step").write_text(str(self.step))


def along(folder: Path, scores: list[Any], share: float = 0.9, every: int = 1, begin: int = 0) -> EpochEvaluations:
    """A run of a step an epoch; scores (quality, utility) of each step, or an error."""

    def evaluate(model: Saved, tokenizer: Any, place: Path) -> dict[str, float]:
        place.mkdir(parents=True)
        if isinstance(scores[model.step], Exception):
            raise scores[model.step]
        quality, utility = scores[model.step]
        return {"ES forget": quality, "Prob retain": utility}

    callback = EpochEvaluations(evaluate, JUDGES["own"], folder, every=every, share=share)
    most = len(scores) - 1

    def tell(when: str, step: int) -> None:
        given = {"model": Saved(step), "processing_class": Saved(-1)}
        getattr(callback, when)(None, State(step, float(step), most), None, **given)

    tell("on_train_begin", begin)
    for step in range(begin + 1, most + 1):
        tell("on_step_end", step)
        tell("on_save", step)
    tell("on_train_end", most)
    return callback


def best_in(folder: Path) -> str | None:
    file = folder / "best" / "step"
    return file.read_text() if file.is_file() else None


def test_the_least_left_among_those_that_keep_the_share(tmp_path: Path) -> None:
    # 0.9 of 0.8 is 0.72: step 3 keeps too little, 1 and 4 leave as much, of which 4 keeps more.
    along(tmp_path, [(0.9, 0.8), (0.2, 0.73), (0.5, 0.8), (0.0, 0.71), (0.2, 0.74)])
    assert best_in(tmp_path) == "4"
    assert read_points(tmp_path)[1] == 4


def test_where_none_keeps_the_share_there_is_no_best_model(tmp_path: Path) -> None:
    callback = along(tmp_path, [(0.9, 0.8), (0.2, 0.1), DivergedError("the model gives NaN or Inf for 1 of 2 rows")])
    assert best_in(tmp_path) is None
    assert read_points(tmp_path)[1] is None
    assert [point.utility for point in callback.along.points] == [0.8, 0.1, None]


def test_every_other_epoch_and_the_last(tmp_path: Path) -> None:
    assert [point.step for point in along(tmp_path, [(0.5, 0.8)] * 6, every=2).along.points] == [0, 2, 4, 5]


def test_a_run_that_had_come_to_its_end_is_taken_up(tmp_path: Path) -> None:
    scores = [(0.9, 0.8), (0.3, 0.8), (0.2, 0.8), (0.1, 0.8)]
    along(tmp_path, scores[:3])
    assert best_in(tmp_path) == "2"
    along(tmp_path, scores, begin=2)
    assert best_in(tmp_path) == "3"
    # A checkpoint of 2, and a third step that this time is no better: that of 2 was dropped when 3 had been the best.
    with pytest.warns(UserWarning, match="the best model is not there any more"):
        along(tmp_path, [*scores[:3], (0.4, 0.8)], begin=2)
    assert best_in(tmp_path) is None
    assert read_points(tmp_path)[1] == 2


def test_an_error_that_is_not_the_models_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no space left"):
        along(tmp_path, [(0.9, 0.8), RuntimeError("no space left")])
