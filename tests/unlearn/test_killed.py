"""One of several processes is killed, anywhere: the run goes on from its last whole checkpoint and ends as if not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import launched
import pytest
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_data, save_model

from gru_fast import runs
from gru_fast.runs.checkpoint import LAUNCH, is_whole, last_checkpoint

FEW = {"save_total_limit": 1}


@pytest.fixture(scope="module")
def unbroken(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """What runs that nobody kills end with, under DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {f: processes.run(launched.run_to_the_end, 2, folder / str(f), f, **FEW) for f in (False, True)}


def run_in(processes: Processes, world: int, folder: Path, fsdp2: bool, **settings: Any) -> list[Any]:
    """The same run in any number of processes."""
    if world == 1:
        return [launched.run_to_the_end(folder, fsdp2, **settings)]
    return processes.run(launched.run_to_the_end, world, folder, fsdp2, **settings)


@pytest.mark.parametrize(
    ("fsdp2", "rank", "moment"),
    [
        (False, 1, "step"),
        (False, 1, "random numbers"),
        (False, 0, "rotation"),
        (True, 1, "step"),
        (True, 1, "shards of e"),
        (True, 0, "trainer state"),
    ],
)
def test_killed_and_resumed(
    processes: Processes, unbroken: dict[bool, Any], tmp_path: Path, fsdp2: bool, rank: int, moment: str
) -> None:
    """With one checkpoint kept at a time. Bit for bit the weights and e of an unbroken run."""
    doomed = Processes(2)
    try:
        codes = doomed.run_until_one_dies(launched.killed, 2, tmp_path, fsdp2, rank, moment, **FEW)
    finally:
        doomed.close()
    assert codes[rank] == -signal.SIGKILL
    found = {path.name: is_whole(path) for path in tmp_path.glob("checkpoint-*")}
    halfway = {} if moment == "step" else {"checkpoint-4": moment == "rotation"}
    assert found == {"checkpoint-2": True, **halfway}
    assert last_checkpoint(tmp_path).name == ("checkpoint-4" if moment == "rotation" else "checkpoint-2")
    resumed = processes.run(launched.run_to_the_end, 2, tmp_path, fsdp2, resume=True, **FEW)
    for ours, theirs in zip(resumed, unbroken[fsdp2], strict=True):
        assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))
    assert [path.name for path in tmp_path.glob("checkpoint-*") if is_whole(path)] == ["checkpoint-6"]


@pytest.mark.parametrize(("before", "after", "fsdp2"), [(2, 1, False), (1, 2, False), (4, 2, True), (2, 4, True)])
def test_another_number_of_processes_goes_on(
    processes: Processes, unbroken: dict[bool, Any], tmp_path: Path, before: int, after: int, fsdp2: bool
) -> None:
    """The same rows in the same micro-batches: the end differs by rounding alone."""
    run_in(processes, before, tmp_path, fsdp2)
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    for found in run_in(processes, after, tmp_path, fsdp2, resume=True):
        for a, b in zip(found, unbroken[fsdp2][0], strict=True):
            assert float((a - b).norm()) <= 1e-4 * float(b.norm())
    assert json.loads((tmp_path / "checkpoint-6" / LAUNCH).read_text())["processes"] == after


def test_another_number_of_processes_with_other_steps_is_refused(processes: Processes, tmp_path: Path) -> None:
    run_in(processes, 1, tmp_path, False)
    with pytest.raises(AssertionError, match=r"as 1 process took them, got 8 in 1 from 2; set .*accumulation_steps=2"):
        run_in(processes, 2, tmp_path, False, resume=True, gradient_accumulation_steps=4)


def test_processes_that_see_different_checkpoints_are_refused(processes: Processes, tmp_path: Path) -> None:
    """One would go on while the other begins."""
    run_in(processes, 1, tmp_path, False)
    said = "expected all processes to go on from the same checkpoint, got checkpoint-6 in process 0, no checkpoint in "
    for found in processes.run(launched.resume_apart, 2, tmp_path):
        assert said in found


def test_command_goes_on_in_another_number_of_processes(
    processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`gru-fast unlearn --resume`, which is told of the accumulation that goes with it; what has ended stays."""
    save_data(tmp_path / "data")
    out, model = tmp_path / "run", save_model(tmp_path / "model")
    places = ["--model", str(model), "--data", str(tmp_path / "data"), "--output-dir", str(out)]
    steps = ["--num-train-epochs", "2", "--per-device-train-batch-size", "1", "--save-steps", "1", "--use-cpu"]
    chosen = ["--method", "ga", "--rectify", "--optim", "sgd", "--learning-rate", "0.05", "--disable-tqdm"]
    argv = ["unlearn", *places, *steps, *chosen]
    assert processes.run(launched.command, 2, [*argv, "--gradient-accumulation-steps", "1"]) == [0, 0]
    ended = load_file(out / "model.safetensors")
    again = ["unlearn", "--output-dir", str(out), "--resume"]
    assert processes.run(launched.command, 2, again) == [0, 0]
    (out / "run.json").unlink()
    for checkpoint in sorted(out.glob("checkpoint-*"))[1:]:
        shutil.rmtree(checkpoint)
    assert launched.command(again) == 1
    assert "set per_device_train_batch_size=1 and gradient_accumulation_steps=2" in capsys.readouterr().err
    assert launched.command([*again, "--gradient-accumulation-steps", "2"]) == 0
    for name, weight in load_file(out / "model.safetensors").items():
        assert float((weight - ended[name]).norm()) <= 1e-5 * float(ended[name].norm())
    run = runs.read_run(out)
    assert [run.environment["processes"], run.environment["resumed"][-1]["processes"]] == [2, 1]
    assert run.result["resumed_from"] == 1
