"""UnlearnTrainer in several processes, against one process with the same rows."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import launched
import pytest
import tiny
import torch
import yaml
from following import arguments, assert_follows, assert_same_models
from processes import Processes
from transformers import LlamaForCausalLM


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["ga", "npo_gd", "npo_kl"])
def test_ddp(processes: Processes, tmp_path: Path, method: str, stream: bool) -> None:
    """Also with reference log-probabilities, a share of r in g, and a reference model."""
    assert_follows(processes, tmp_path, method=method, stream=stream)


@pytest.mark.parametrize(
    ("fsdp2", "stream"), [(False, False), (False, True), (True, False)], ids=["ddp", "ddp-stream", "fsdp2"]
)
def test_more_rows_to_keep_and_an_average_before_the_first_step(
    processes: Processes, tmp_path: Path, fsdp2: bool, stream: bool
) -> None:
    more = {"retain_batch_size": 3, "warm_up_retain": 4, "gamma": 0.3, "stream": stream}
    assert_follows(processes, tmp_path, fsdp2=fsdp2, method="ga", **more)


@pytest.mark.parametrize("fsdp2", [False, True], ids=["ddp", "fsdp2"])
def test_several_retain_sets(processes: Processes, tmp_path: Path, fsdp2: bool) -> None:
    several = {"retain_sets": ["facts"], "rectifier": "gem", "rectify_against": "ema", "gamma": 0.3}
    assert_follows(processes, tmp_path, fsdp2=fsdp2, method="ga", **several)


@pytest.mark.parametrize(("method", "fsdp2"), [("pdu", False), ("undial", True)], ids=["ddp", "fsdp2"])
def test_logits_of_the_vocabulary_and_a_dual_variable(
    processes: Processes, tmp_path: Path, method: str, fsdp2: bool
) -> None:
    is_pdu = method == "pdu"  # flat logits are in no conflict: it is tried without GRU
    options = {"retain_weight": 0.5, "eps": 3.0, "warm_up_epochs": 0} if is_pdu else {"beta": 3.0}
    settings = {"method_options": options, "learning_rate": 0.002, "rectify": not is_pdu}
    assert_follows(processes, tmp_path, fsdp2=fsdp2, method=method, **settings)


def test_a_base_in_4_bits(processes: Processes, tmp_path: Path) -> None:
    """DDP, streamed; and FSDP2 refuses it."""
    pytest.importorskip("bitsandbytes", reason="the extra 4bit is not installed")
    tiny.llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "model")
    four_bit = str(tmp_path / "model")
    assert_follows(processes, tmp_path, method="npo_gd", four_bit=four_bit, stream=True)
    for found in processes.run(launched.refused, 2, tmp_path / "refused", fsdp2=True, four_bit=four_bit, method="ga"):
        assert found.startswith("load_in_4bit: not with FSDP or DeepSpeed")


def test_means_over_processes_in_one_order(processes: Processes) -> None:
    """Whichever order gradients come in, and where one process has none."""
    assert processes.run(launched.means, 2) == [True, True]


@pytest.mark.parametrize(("fsdp2", "stream"), [(False, True), (True, False), (True, True)])
def test_a_share_of_r_that_goes_by_the_rows(processes: Processes, tmp_path: Path, fsdp2: bool, stream: bool) -> None:
    """In each process another, of a gradient that is the mean over the processes."""
    settings: dict[str, Any] = {"method": "idk", "stream": stream}
    found = processes.run(launched.trained, 2, tmp_path / "several", fsdp2, **settings)
    _, expected, ema = launched.trained(tmp_path / "one", **settings)
    start = launched.weights(launched.model())
    for _, weights, average in found:
        for a, b, w in zip(weights, expected, start, strict=True):
            assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 2.0**-23 * float(b.norm())
        for a, b in zip(average, ema, strict=True):
            assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-8


def test_ddp_measures_too(processes: Processes, tmp_path: Path) -> None:
    assert_follows(processes, tmp_path, method="ga", rectify=False, monitor=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["ga", "npo_gd", "npo_kl"])
def test_fsdp2(processes: Processes, tmp_path: Path, method: str, stream: bool) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, method=method, stream=stream)


@pytest.mark.parametrize(("fsdp2", "metric"), [(False, "adam"), (True, "euclidean"), (True, "adam")])
def test_an_optimizer_that_rectifies_its_step(processes: Processes, tmp_path: Path, fsdp2: bool, metric: str) -> None:
    """With an epsilon that keeps rounding in a gradient near 0 from becoming a step of full size."""
    settings: dict[str, Any] = {"optim": "gru_adamw", "rectify_update": True, "update_metric": metric}
    assert_follows(processes, tmp_path, fsdp2=fsdp2, method="ga", adam_epsilon=1e-2, **settings)


def test_fsdp2_with_lora(processes: Processes, tmp_path: Path) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, method="ga_kl", lora=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ga", "rectify": False, "monitor": True},
        {"method": "gd", "rectify": False},
        {"method": "ga", "rectifier": "gdr", "tau": 1.0},
        {"method": "rmu"},
        {"method": "rmu", "stream": True},
        {"method": "npo_kl", "offload_reference": True},
        {"method": "npo_gd", "scale": 1024.0},
    ],
    ids=["monitor", "plain", "gdr", "rmu", "rmu-stream", "offload", "loss scale"],
)
def test_other_steps_with_fsdp2(processes: Processes, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_follows(processes, tmp_path, fsdp2=True, **settings)


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
