"""UnlearnTrainer with DeepSpeed ZeRO in two processes, against one process without; and DeepSpeed itself."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import launched
import launched_deepspeed as jobs
import pytest
from following import arguments, assert_follows, assert_same_models
from launched_deepspeed import configured as zero
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_model
from transformers import LlamaForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gru_fast.cli import main
from gru_fast.runs.checkpoint import last_checkpoint

pytest.importorskip("deepspeed", reason="needs the extra gru_fast[deepspeed]")

SMALL = {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1000}  # many buckets; nothing is kept whole


@pytest.mark.parametrize(
    ("stage", "more", "settings"),
    [
        (3, SMALL, {"method": "npo_kl", "stream": True, "offload_reference": True}),
        (2, SMALL, {"method": "ga_kl", "lora": True}),
    ],
)
def test_follows_one_process(
    processes: Processes, tmp_path: Path, stage: int, more: dict[str, Any], settings: dict[str, Any]
) -> None:
    """In many buckets; shards that end in padding. What else goes is in test_engine_table.py."""
    assert_follows(processes, tmp_path, zero=zero(stage, more), **settings)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_that_is_not_to_be_made(processes: Processes, tmp_path: Path, stage: int) -> None:
    """NaN in g of the second of three steps, in one process: weights and moments stay, the next step is as without."""
    found = processes.run(jobs.skipped, 2, tmp_path / "several", zero(stage))
    expected = jobs.skipped(tmp_path / "one")
    for counts, weights, rate in found:
        assert (counts, rate) == (expected[0], expected[2]) == ({"skipped": 1, "applied": 2}, pytest.approx(0.05 / 3))
        for a, b in zip(weights, expected[1], strict=True):
            assert float((a - b).norm()) <= 2e-5 * float(b.norm())


@pytest.mark.parametrize(("stage", "method"), [(1, "npo_gd"), (2, "npo_gd"), (3, "ga_kl")])
def test_resumes(processes: Processes, tmp_path: Path, stage: int, method: str) -> None:
    """From Trainer's checkpoint, with DeepSpeed's in it, and e in shards: bit for bit."""
    assert processes.run(launched.resumed, 2, tmp_path, zero=zero(stage), method=method) == [[True, True]] * 2


@pytest.mark.parametrize(("stage", "moment"), [(2, "step"), (3, "shards of e")])
def test_killed_and_resumed(processes: Processes, tmp_path: Path, stage: int, moment: str) -> None:
    """One of two processes; the run goes on from its last whole checkpoint and ends with the bits of an unbroken one.

    It does not go on in another number of processes.
    """
    config = zero(stage)
    unbroken = processes.run(launched.run_to_the_end, 2, tmp_path / "unbroken", False, zero=config)
    doomed = Processes(2)
    try:
        codes = doomed.run_until_one_dies(launched.killed, 2, tmp_path / "run", False, 1, moment, zero=config)
    finally:
        doomed.close()
    assert codes[1] == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    said = r"expected 2 processes, as it was saved by, got 4; DeepSpeed does not cut up"
    with pytest.raises(AssertionError, match=said):
        processes.run(launched.run_to_the_end, 4, tmp_path / "run", False, resume=True, zero=config)
    resumed = processes.run(launched.run_to_the_end, 2, tmp_path / "run", False, resume=True, zero=config)
    for ours, theirs in zip(resumed, unbroken, strict=True):
        assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("stage", [2, 3])
def test_saves_the_whole_model(processes: Processes, tmp_path: Path, stage: int) -> None:
    trained = processes.run(launched.saved, 2, tmp_path, zero(stage))[0]
    loaded = launched.weights(LlamaForCausalLM.from_pretrained(tmp_path))
    assert all(bool((a == b).all()) for a, b in zip(loaded, trained, strict=True))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({"gradient_clipping": 1.0}, {}, 'gradient_clipping: expected "auto" in the DeepSpeed configuration, or max_g'),
        (zero(0), {"rectify": False}, "zero_optimization.stage: expected 1, 2 or 3 in the DeepSpeed configuration"),
        (zero(3, {"zero_hpz_partition_size": 2}), {}, "zero_optimization.zero_hpz_partition_size: not with GRU"),
        (
            {**zero(1), "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            {},
            "data_types.grad_accum_dtype: not fp32 with bf16 and ZeRO-1, which then has another optimizer; take ZeRO-2",
        ),
        ({"optimizer": {"type": "Muon", "params": {}}}, {}, "optimizer.type: not Muon"),
        ({"tensor_parallel": {"autotp_size": 2}}, {}, "tensor_parallel.autotp_size: expected 1"),
        (zero(3), {"method": "npo", "action": "evaluate"}, "evaluate: npo compares with the model before unlearning"),
    ],
)
def test_what_does_not_go_is_refused(
    processes: Processes, tmp_path: Path, config: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    """Before anything is trained, in every process."""
    asked = {"method": "ga", **settings}
    for found in processes.run(launched.refused, 2, tmp_path, False, zero={**zero(2), **config}, **asked):
        assert found.startswith(said)


@pytest.mark.parametrize("stage", [2, 3])
def test_another_trainer_behind_the_mixin(processes: Processes, tmp_path: Path, stage: int) -> None:
    """One backward pass over two forward passes."""
    expected, _ = jobs.mixin(tmp_path / "one")
    start = launched.weights(launched.model())
    for found, said in processes.run(jobs.mixin, 2, tmp_path / "several", zero(stage)):
        assert said == "retain_ema: with DeepSpeed gradients have a place only when training has begun"
        for a, b, w in zip(found, expected, start, strict=True):
            assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 2.0**-23 * float(b.norm())


@pytest.mark.parametrize(("stage", "first"), [(2, "train"), (3, "evaluate")])
def test_its_engine_trains_once(processes: Processes, tmp_path: Path, stage: int, first: str) -> None:
    """accelerate takes an engine down that is there already when training begins, in which gradients then go astray."""
    for said in processes.run(jobs.again, 2, tmp_path, zero(stage), first):
        assert said.startswith("train: expected a new trainer, since accelerate takes this one's DeepSpeed engine down")


@pytest.mark.parametrize("stage", [2, 3])
def test_command(processes: Processes, tmp_path: Path, stage: int) -> None:
    """gru-fast unlearn, whose model transformers loads in pieces with ZeRO-3, saves it as one process."""
    assert processes.run(launched.command, 2, arguments(tmp_path, "several", 1), zero=zero(stage)) == [0, 0]
    assert launched.command(arguments(tmp_path, "one", 2)) == 0
    assert_same_models(tmp_path)


def test_command_with_lora(processes: Processes, tmp_path: Path) -> None:
    """An adapter put on a model in pieces, whose weights have no shape: as on a whole one."""
    lora = ["--use-peft", "--lora-r", "4", "--lora-dropout", "0"]
    assert processes.run(launched.command, 2, [*arguments(tmp_path, "several", 1), *lora], zero=zero(3)) == [0, 0]
    assert launched.command([*arguments(tmp_path, "one", 2), *lora]) == 0
    several, one = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("several", "one"))
    assert several.keys() == one.keys()
    assert any(bool(weight.any()) for name, weight in one.items() if "lora_B" in name)
    for name, weight in one.items():
        assert float((several[name] - weight).norm()) <= 2e-5 * float(weight.norm())


def test_forget_needs_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "zero.json").write_text(json.dumps({**launched.AUTO, **zero(2)}))
    (tmp_path / "text.txt").write_text("Some words that are to be forgotten.")
    places = ["--model", str(save_model(tmp_path / "model")), "--forget", str(tmp_path / "text.txt")]
    argv = ["forget", *places, "--output-dir", str(tmp_path / "run"), "--use-cpu"]
    assert main([*argv, "--deepspeed", str(tmp_path / "zero.json")]) == 1
    assert "fsdp, deepspeed: gru-fast forget needs the whole model" in capsys.readouterr().err
    unset_hf_deepspeed_config()


def test_files_of_the_docs(processes: Processes, tmp_path: Path) -> None:
    """The two configurations of docs/larger-models.md, with torch's optimizer, in float32, which can be compared."""
    page = (Path(__file__).parents[2] / "docs" / "larger-models.md").read_text(encoding="utf-8")
    files = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert ["offload_optimizer" in file["zero_optimization"] for file in files] == [False, True]
    for index, file in enumerate(files):
        file |= {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
        assert_follows(processes, tmp_path / str(index), zero=file, method="npo_gd", stream=True)


# ---- DeepSpeed itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "after_the_first"), [(1, [0.5, 1.0]), (2, ["ValueError"] * 2), (3, [0.75] * 2)])
def test_what_deepspeed_shows_of_gradients(processes: Processes, stage: int, after_the_first: list[Any]) -> None:
    """After the first of two micro-batches a process's own, nothing, or the mean over the processes, by the stage.

    After the last the mean in all: why each backward pass is made to be the last of a step.
    """
    first, second = processes.run(jobs.seen, 2, stage, 0.0)
    assert [first["last"], second["last"]] == [1.5, 1.5]
    assert [first["first"], second["first"]] == after_the_first
    assert [first["weight"], second["weight"]] == [-3.0, -3.0]  # what was set is what the step is made of


def test_deepspeed_and_accelerate_clip_where_nobody_says_so(processes: Processes, tmp_path: Path) -> None:
    """To norm 1, which would undo tau."""
    for found in processes.run(jobs.seen, 2, 2, None):
        assert found["weight"] == pytest.approx(-0.5, abs=1e-6)
    assert processes.run(jobs.clipping, 2, tmp_path, zero(2), settled=False) == [1.0, 1.0]
    assert processes.run(jobs.clipping, 2, tmp_path, zero(2), settled=True) == [0.0, 0.0]


@pytest.mark.parametrize(("stage", "accumulated"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_bfloat16(processes: Processes, tmp_path: Path, stage: int, accumulated: str) -> None:
    """Computed in bfloat16, e in float32: as far as one process in float32 to 5%."""
    config = {**zero(stage), "bf16": {"enabled": "auto"}, "data_types": {"grad_accum_dtype": accumulated}}
    settings = {"zero": config, "method": "npo_gd", "bf16": True}
    _, found, ema = processes.run(launched.trained, 2, tmp_path / "several", **settings)[0]
    _, weights, expected = launched.trained(tmp_path / "one", method="npo_gd")
    for a, b in zip(ema, expected, strict=True):
        assert str(a.dtype) == "torch.float32"
        assert float((a - b).norm()) <= 0.05 * float(b.norm()) + 1e-3
    for a, b in zip(found, weights, strict=True):
        assert float((a.float() - b).norm()) <= 0.01 * float(b.norm())
