"""UnlearnTrainer in several processes, against one process with the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launched
import numpy as np
import pytest
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_data, save_model
from transformers import LlamaForCausalLM


def assert_follows(processes: Processes, folder: Path, world: int = 2, fsdp2: bool = False, **settings: Any) -> None:
    """Logs alike to 2e-5, e to 2e-5 of its norm, weights to 2e-5 of how far they have moved and one rounding of theirs.

    All processes end with the same weights.
    """
    found = processes.run(launched.trained, world, folder / "several", fsdp2, **settings)
    logs, weights, ema = launched.trained(folder / "one", **settings)
    assert len(logs) == 3
    assert any(entry.get("conflict", 1.0) for entry in logs), "a test of the projection needs a conflict"
    for others, *_ in found:
        assert len(others) == 3
        for entry, expected in zip(others, logs, strict=True):
            assert set(entry) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(entry[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    for other in found[1:]:
        assert all(bool((a == b).all()) for a, b in zip(other[1], found[0][1], strict=True))
    start = launched.weights(launched.model(settings.get("lora", False)))
    for a, b, w in zip(found[0][1], weights, start, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 2.0**-23 * float(b.norm())
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-8


@pytest.mark.parametrize("method", ["ga", "npo_gd", "npo_kl"])
def test_ddp(processes: Processes, tmp_path: Path, method: str) -> None:
    """Also with reference log-probabilities, a share of r in g, and a reference model."""
    assert_follows(processes, tmp_path, method=method)


def test_ddp_measures_too(processes: Processes, tmp_path: Path) -> None:
    assert_follows(processes, tmp_path, method="ga", rectify=False, monitor=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["ga", "npo_gd", "npo_kl"])
def test_fsdp2(processes: Processes, tmp_path: Path, method: str, stream: bool) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, method=method, stream=stream)


def test_fsdp2_with_lora(processes: Processes, tmp_path: Path) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, method="ga_kl", lora=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ga", "rectify": False, "monitor": True},
        {"method": "gd", "rectify": False},
        {"method": "ga", "rectifier": "gdr", "tau": 1.0},
    ],
    ids=["monitor", "plain", "gdr"],
)
def test_other_steps_with_fsdp2(processes: Processes, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, **settings)


def test_fsdp2_exchanges_gradients_of_every_loss(processes: Processes, tmp_path: Path) -> None:
    """Else those to forget and to keep would add up inside its modules: accelerate would wait for the last batch."""
    for asked, done in processes.run(launched.exchanged, 2, tmp_path):
        assert asked.count(False) == asked.count(True) >= 2
        assert all(done)


@pytest.mark.parametrize(("method", "state_dict"), [("npo_gd", "SHARDED_STATE_DICT"), ("ga_kl", "FULL_STATE_DICT")])
def test_fsdp2_resumes(processes: Processes, tmp_path: Path, method: str, state_dict: str) -> None:
    """From Trainer's checkpoint, sharded or not, to which each process has added its shards of e."""
    assert processes.run(launched.resumed, 2, tmp_path, state_dict, method=method) == [[True, True]] * 2


def test_fsdp2_saves_the_whole_model(processes: Processes, tmp_path: Path) -> None:
    trained = processes.run(launched.saved, 2, tmp_path)[0]
    loaded = launched.weights(LlamaForCausalLM.from_pretrained(tmp_path))
    assert all(bool((a == b).all()) for a, b in zip(loaded, trained, strict=True))


@pytest.mark.parametrize("fsdp2", [False, True])
def test_command(processes: Processes, tmp_path: Path, fsdp2: bool) -> None:
    """gru-fast unlearn, which loads the model (with FSDP2 in the first process alone) and saves it, as one process."""
    save_data(tmp_path / "data")
    model = save_model(tmp_path / "model")

    def argv(world: int) -> list[str]:
        places = ["--model", str(model), "--data", str(tmp_path / "data"), "--output-dir", str(tmp_path / str(world))]
        steps = ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", str(2 // world)]
        chosen = ["--method", "npo_gd", "--rectify", "--optim", "sgd", "--learning-rate", "0.05", "--use-cpu"]
        return ["unlearn", "--disable-tqdm", "--num-train-epochs", "1", *places, *steps, *chosen]

    assert processes.run(launched.command, 2, argv(2), fsdp2) == [0, 0]
    assert launched.command(argv(1)) == 0
    start, several, one = (
        load_file(folder / "model.safetensors") for folder in (model, tmp_path / "2", tmp_path / "1")
    )
    assert several.keys() == one.keys()
    for name, weight in one.items():
        moved = float((weight - start[name]).norm())
        assert float((several[name] - weight).norm()) <= 2e-5 * moved + 2.0**-23 * float(weight.norm())


@pytest.mark.parametrize(
    ("fsdp2", "settings", "said"),
    [
        (False, {"method": "ga", "stream": True}, "stream: not with DistributedDataParallel, which averages"),
        (True, {"method": "npo", "action": "evaluate"}, "evaluate: npo compares with the model before unlearning"),
        (True, {"method": "rmu"}, "rmu: not with FSDP2, whose modules expect to be run whole"),
        (True, {"method": "ga", "fp16": True}, "fp16: not with FSDP2, where each process would find overflows"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    processes: Processes, tmp_path: Path, fsdp2: bool, settings: dict[str, Any], said: str
) -> None:
    for found in processes.run(launched.refused, 2, tmp_path, fsdp2, **settings):
        assert found.startswith(said)
