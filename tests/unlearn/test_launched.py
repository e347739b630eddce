"""UnlearnTrainer in several processes, against one process with the same rows: what the table of engines leaves out."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
import yaml
from following import arguments, assert_follows, assert_same_models
from processes import Processes
from transformers import LlamaForCausalLM


def test_means_over_processes_in_one_order(processes: Processes) -> None:
    """Whichever order gradients come in, and where one process has none."""
    assert processes.run(launched.means, 2) == [True, True]


@pytest.mark.parametrize("settings", [{"rectify": True}, {"monitor": True}], ids=["gru", "scaler alone"])
def test_an_overflow_in_one_shard_is_one_decision(
    processes: Processes, tmp_path: Path, settings: dict[str, Any]
) -> None:
    skipped = 1 if "rectify" in settings else 0  # without GRU the scaler alone decides, and counts nothing
    wanted = [[512.0, 512.0, 512.0], skipped, [False, True, True]]
    assert processes.run(launched.overflown, 2, tmp_path, **settings) == [wanted, wanted]


@pytest.mark.parametrize(("method", "stream"), [("npo_gd", False), ("npo_kl", True)])
def test_hsdp(processes: Processes, tmp_path: Path, method: str, stream: bool) -> None:
    """Shards over two processes, copies of them in two others."""
    mesh = {"dp_replicate_size": 2, "dp_shard_size": 2}
    assert_follows(processes, tmp_path, 4, fsdp2=True, mesh=mesh, method=method, stream=stream)


@pytest.mark.parametrize(("method", "stream"), [("npo_gd", False), ("npo_kl", True), ("rmu", False)])
def test_tensor_parallel(processes: Processes, tmp_path: Path, method: str, stream: bool) -> None:
    """All processes take all rows; norms are whole in each, and count once."""
    assert_follows(processes, tmp_path, 2, at_load={"tp_size": 2}, method=method, stream=stream)


@pytest.mark.parametrize(
    ("world", "sizes"), [(2, {"fsdp_size": 2}), (4, {"fsdp_size": 2, "tp_size": 2})], ids=["fsdp2", "with tp"]
)
def test_sharded_at_load(processes: Processes, tmp_path: Path, world: int, sizes: dict[str, int]) -> None:
    """By transformers, not by accelerate; with FSDP2 on top of tensor parallelism a mesh of two dimensions."""
    assert_follows(processes, tmp_path, world, at_load=sizes, method="npo_gd")


def test_fsdp2_exchanges_gradients_of_every_loss(processes: Processes, tmp_path: Path) -> None:
    """Else those to forget and to keep would add up inside its modules: accelerate would wait for the last batch."""
    for asked, done in processes.run(launched.exchanged, 2, tmp_path):
        assert asked.count(False) == asked.count(True) >= 2
        assert all(done)


@pytest.mark.parametrize(("method", "state_dict"), [("npo_gd", "SHARDED_STATE_DICT"), ("ga_kl", "FULL_STATE_DICT")])
def test_fsdp2_resumes(processes: Processes, tmp_path: Path, method: str, state_dict: str) -> None:
    """From Trainer's checkpoint, sharded or not, to which each process has added its shards of e."""
    assert processes.run(launched.resumed, 2, tmp_path, state_dict, method=method) == [[True, True]] * 2


def test_an_optimizer_that_rectifies_its_step_resumes(processes: Processes, tmp_path: Path) -> None:
    settings = {"method": "ga", "optim": "gru_adamw", "rectify_update": True, "update_metric": "adam"}
    assert processes.run(launched.resumed, 2, tmp_path, "SHARDED_STATE_DICT", **settings) == [[True, True]] * 2


def test_hsdp_resumes(processes: Processes, tmp_path: Path) -> None:
    settings = {"method": "npo_gd", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    mesh = {"dp_replicate_size": 2, "dp_shard_size": 2}
    found = processes.run(launched.resumed, 4, tmp_path, "SHARDED_STATE_DICT", mesh, **settings)
    assert found == [[True, True]] * 4


def test_fsdp2_saves_the_whole_model(processes: Processes, tmp_path: Path) -> None:
    trained = processes.run(launched.saved, 2, tmp_path)[0]
    loaded = launched.weights(LlamaForCausalLM.from_pretrained(tmp_path))
    assert all(bool((a == b).all()) for a, b in zip(loaded, trained, strict=True))


@pytest.mark.parametrize("fsdp2", [False, True])
def test_command(processes: Processes, tmp_path: Path, fsdp2: bool) -> None:
    """gru-fast unlearn, which loads the model (with FSDP2 in the first process alone) and saves it, as one process."""
    assert processes.run(launched.command, 2, arguments(tmp_path, "several", 1), fsdp2) == [0, 0]
    assert launched.command(arguments(tmp_path, "one", 2)) == 0
    assert_same_models(tmp_path)


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path) -> None:
    """Two processes, started with the configuration for accelerate of docs/, in float32, which can be compared."""
    page = (Path(__file__).parents[2] / "docs" / "larger-models.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(compute_environment: .*?)```", page, re.DOTALL)
    assert found is not None
    config = yaml.safe_load(found[1])
    assert (config["num_processes"], config["fsdp_config"]["fsdp_version"]) == (8, 2)
    config |= {"num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "fsdp2-2.yaml").write_text(yaml.safe_dump(config))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp2-2.yaml")]
    launcher += ["--main_process_port", str(free_port()), str(Path(launched.__file__))]
    argv = [*arguments(tmp_path, "several", 1), "--stream"]
    done = subprocess.run([*launcher, *argv], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert launched.command(arguments(tmp_path, "one", 2)) == 0
    assert_same_models(tmp_path)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.parametrize(
    ("fsdp2", "settings", "said"),
    [
        pytest.param(
            *(
                False,
                {"method": "ga", "use_cpu": False},
                "use_cpu: 2 processes were launched, but without an accelerator",
            ),
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator"),
        ),
        (True, {"method": "npo", "action": "evaluate"}, "evaluate: npo compares with the model before unlearning"),
        (
            False,
            {"method": "ga", "precision": "fp16", "at_load": {"tp_size": 2}},
            "fp16: not with parameters that are sharded without accelerate",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    processes: Processes, tmp_path: Path, fsdp2: bool, settings: dict[str, Any], said: str
) -> None:
    for found in processes.run(launched.refused, 2, tmp_path, fsdp2, **settings):
        assert found.startswith(said)
