"""A run that was killed and resumed ends with the weights of one that was not; broken and foreign checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from interpreter import run_python
from torch import Tensor

from gru_fast.core.ema import RetainEMA
from gru_fast.runs.checkpoint import (
    LAUNCH,
    TRAINER_STATE,
    Launch,
    check_fits,
    is_whole,
    last_checkpoint,
    remove_checkpoint,
)
from gru_fast.unlearn import ReferenceLogProbs
from gru_fast.unlearn.gru_state import GRU_STATE, GRU_STATE_SHARDS, load_gru_state, save_gru_state
from gru_fast.unlearn.trainer import REFERENCE_LOG_PROBS

EVERY = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "gamma": 0.3, "tau": 2.0}


def weights(trainer: Any) -> list[Tensor]:
    return [p.detach() for p in trainer.model.parameters()]


def make(folder: Path, model: Any = None, **settings: Any) -> Any:
    return tiny.trainer(folder, model, **{**EVERY, "method": "npo", "rectify": True, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "npo"},
        {"method": "npo", "stream": True},
        {"method": "dpo"},  # idk answers and retain rows are drawn anew in each epoch
        {"method": "idk", "stream": True},  # its retain weight differs between micro-batches
        {"method": "idk"},
        {"method": "ga_kl", "stream": True},
        {"method": "gd", "rectify": False},
        {"method": "ga", "rectify": False, "monitor": True},
    ],
    ids=lambda s: "-".join(str(value) for value in s.values()),
)
@pytest.mark.parametrize("step", [3, 4])  # the end of the first epoch, the middle of the second
def test_resumed_is_bit_identical_to_unbroken(settings: dict[str, Any], step: int, tmp_path: Path) -> None:
    settings = {"save_steps": step, **settings}
    whole = make(tmp_path, **settings)
    whole.train()
    assert whole.state.global_step == 9
    for later in range(2 * step, 10, step):
        shutil.rmtree(tmp_path / f"checkpoint-{later}")
    shutil.rmtree(tmp_path / "checkpoint-9", ignore_errors=True)
    (tmp_path / REFERENCE_LOG_PROBS).unlink(missing_ok=True)  # the checkpoint's own is read
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    if whole.gru_options.follows_retain:
        assert resumed.retain_ema.step == 9
        assert all(torch.equal(a, b) for a, b in zip(resumed.retain_ema.tensors, whole.retain_ema.tensors, strict=True))
        assert resumed.gru_counts == whole.gru_counts


@pytest.mark.parametrize("stream", [False, True])
def test_sixteen_bit_states_resume_bit_for_bit(stream: bool, tmp_path: Path) -> None:
    """The stochastic rounding of a bfloat16 e goes on where it stopped."""
    settings = {"ema_dtype": "bfloat16", "stream": stream}
    whole = make(tmp_path, tiny.llama(dtype=torch.bfloat16), **settings)
    whole.train()
    resumed = make(tmp_path, tiny.llama(dtype=torch.bfloat16), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


@pytest.mark.parametrize("method", ["npo", "npo_kl"])
def test_lora_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def lora(seed: int) -> Any:
        model = tiny.llama()
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))

    whole = make(tmp_path, lora(1), method=method)
    whole.train()
    resumed = make(tmp_path, lora(2), method=method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


KILLED = """
import os, signal
import tiny
from transformers import TrainerCallback

class Kill(TrainerCallback):
    def on_substep_end(self, args, state, control, **_):
        if state.global_step == 5:  # between two micro-batches
            os.kill(os.getpid(), signal.SIGKILL)

settings = {settings!r}
trainer = tiny.trainer({folder!r}, **settings)
trainer.add_callback(Kill())
trainer.train()
"""


def test_killed_between_micro_batches_and_resumed(tmp_path: Path) -> None:
    settings = {**EVERY, "method": "npo", "rectify": True}
    code = KILLED.format(settings=settings, folder=str(tmp_path / "broken"))
    done = run_python(code, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoint-4"
    resumed, whole = tiny.trainer(tmp_path / "broken", **settings), tiny.trainer(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_reference_log_probabilities_are_never_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path)
    first.train()
    beside, inside = (folder / REFERENCE_LOG_PROBS for folder in (tmp_path, tmp_path / "checkpoint-4"))
    assert beside.read_bytes() == inside.read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(ReferenceLogProbs, "compute", never)
    first.train()  # the same trainer again: those it has
    make(tmp_path).train(resume_from_checkpoint=True)


# ---- broken and foreign checkpoints ----------------------------------------------------------------------------------


def trained(tmp_path: Path, **settings: Any) -> Path:
    make(tmp_path, max_steps=4, **settings).train()
    return tmp_path / "checkpoint-4"


def test_a_checkpoint_that_broke_off_is_passed_over(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "checkpoint-4" / TRAINER_STATE).write_text('{"epoch": 1.0, "log_hist')
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-2" / "gru_state.ptabc.tmp").write_bytes(b"")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
    assert last_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(ValueError, match="no complete checkpoint to resume from; start the run anew"):
        make(tmp_path / "nothing").train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="checkpoint-77: no such checkpoint folder"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-77"))


def test_a_checkpoint_that_broke_off_is_not_resumed(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    (checkpoint / TRAINER_STATE).unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-4: expected a whole checkpoint, but trainer_state.json, its last"
    ):
        make(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_what_broke_off_after_the_checkpoint_is_removed(tmp_path: Path) -> None:
    """Where a file system keeps no times, Trainer would take it for the newest and delete whole ones in its favour."""
    trained(tmp_path)
    (tmp_path / "checkpoint-4" / TRAINER_STATE).write_text('{"epoch": 1.0, "log_hist')
    (tmp_path / "checkpoint-best").mkdir()
    make(tmp_path, max_steps=3, save_steps=1, save_total_limit=1).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint-3", "checkpoint-best"]


def test_nothing_of_an_older_checkpoint_of_the_same_step_stays(tmp_path: Path) -> None:
    """For example shards of e, which would be taken for the new ones."""
    trained(tmp_path)
    old = tmp_path / "checkpoint-4" / GRU_STATE_SHARDS
    old.mkdir()
    make(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert is_whole(old.parent)
    assert not old.exists()


def test_a_checkpoint_half_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", lambda _: None)  # killed before it could begin
    remove_checkpoint(checkpoint)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_launch_with_other_steps_is_refused(tmp_path: Path) -> None:
    """It would go on at another row, and with another number of steps."""
    checkpoint = trained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"checkpoint-4: expected steps of 4 rows in micro-batches of 2, as 1 process took them, got 2 in 2 from "
        "1; set per_device_train_batch_size=2 and gradient_accumulation_steps=2",
    ):
        make(tmp_path, gradient_accumulation_steps=1).train(resume_from_checkpoint=str(checkpoint))
    make(tmp_path, gradient_accumulation_steps=1, ignore_data_skip=True).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / LAUNCH).unlink()  # of an earlier version
    make(tmp_path, gradient_accumulation_steps=1).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    ("saved", "resumed", "said"),
    [
        ((2, 4, 16), (1, 4, 8), r"as 2 processes took them, got 8 in 4 from 1; set .*size=4 and .*steps=4$"),
        ((2, 1, 8), (4, 2, 8), r"got 8 in 2 from 4; set .*size=1 and .*steps=2$"),
        ((4, 1, 8), (3, 1, 6), r"got 6 in 1 from 3; launch a number of processes that divides 8$"),
        (
            (2, 1, 2, "FULL_STATE_DICT"),
            (2, 1, 2),
            r"saved with FSDP's FULL_STATE_DICT, resumed without FSDP; launch it",
        ),
        ((2, 1, 2), (2, 1, 2, "SHARDED_STATE_DICT"), r"saved without FSDP, resumed with FSDP's SHARDED_STATE_DICT"),
        (
            (2, 1, 2, "SHARDED_STATE_DICT"),
            (2, 1, 2, "FULL_STATE_DICT"),
            r"SHARDED_STATE_DICT, resumed with FSDP's FULL",
        ),
        ((2, 1, 8), (4, 1, 8), ""),
        # 200 rows are 50 micro-batches of 4: 25 for each of 2, 12.5 for each of 4.
        ((1, 4, 32, None, 200), (2, 4, 32, None, 200), ""),
        ((1, 4, 32, None, 200), (4, 4, 32, None, 200), r"expected 1 process, .*got 4: the 200 rows .*for each of 4"),
        ((8, 4, 32, None, 200), (2, 4, 32, None, 200), r"expected 8 processes, .*got 2: the 200 rows .*for each of 8"),
        ((1, 4, 8, None, 10), (2, 4, 8, None, 10), r"expected 1 process, .*got 2: the 10 rows"),
        ((4, 4, 32, None, 200), (4, 4, 32, None, 200), ""),
        ((4, 2, 8, "FULL_STATE_DICT"), (2, 2, 8, "FULL_STATE_DICT"), ""),
    ],
)
def test_launches_that_go_on(tmp_path: Path, saved: tuple[Any, ...], resumed: tuple[Any, ...], said: str) -> None:
    Launch(*saved).save(tmp_path)
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        Launch(*resumed).check_goes_on(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_hidden_layers": 1}, "checkpoint of another model: expected num_hidden_layers 1, got 2"),
        ({"hidden_size": 16}, "checkpoint of another model: expected hidden_size 16, got 32"),
        ({"intermediate_size": 64}, r'another model: expected ".*mlp.*weight" of shape \(.*\), got \(.*\); load the'),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(config: dict[str, int], match: str, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    trainer = make(tmp_path, tiny.llama(**config))
    before = [w.clone() for w in weights(trainer)]
    with pytest.raises(ValueError, match=match):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), before, strict=True))


def test_a_kl_term_needs_the_model_the_run_started_from(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, method="ga_kl")
    with pytest.raises(ValueError, match="expected to resume with the model that the run started from"):
        make(tmp_path, tiny.llama(seed=1), method="ga_kl").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(("method", "name"), [("npo", "reference_log_probs.json"), ("ga_kl", "reference_model.json")])
def test_a_checkpoint_of_another_method_is_named(method: str, name: str, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, method="ga")
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        make(tmp_path, method=method).train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_without_gru_is_named(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, rectify=False)
    assert not (checkpoint / GRU_STATE).exists()
    with pytest.raises(FileNotFoundError, match=f"{GRU_STATE}: no such file; the checkpoint was saved without rectify"):
        make(tmp_path).train(resume_from_checkpoint=str(checkpoint))
    make(tmp_path, rectify=False).train(resume_from_checkpoint=str(checkpoint))


def test_other_data_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    trainer = make(tmp_path)
    trainer.train_dataset = tiny.dataset(seed=5)
    with pytest.raises(ValueError, match="train_dataset: 12 of its sequences have no reference log-probability"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def ema_of(**shapes: tuple[int, ...]) -> RetainEMA:
    return RetainEMA([(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()])


def test_state_files_are_whole_and_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ema = ema_of(a=(2, 3), b=(4,))
    save_gru_state(tmp_path, ema, {"skipped": 2})
    assert load_gru_state(tmp_path, ema) == {"skipped": 2}
    content = (tmp_path / GRU_STATE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_gru_state(tmp_path, ema, {"skipped": 3})
    assert [path.name for path in tmp_path.iterdir()] == [GRU_STATE]
    assert (tmp_path / GRU_STATE).read_bytes() == content
    with pytest.raises(ValueError, match=r'does not fit what is trained here; .* parameter 0 to be "c", got "a"'):
        load_gru_state(tmp_path, ema_of(c=(2, 3), b=(4,)))
    with pytest.raises(ValueError, match=r"does not fit .* expected shape \(3, 2\), got \(2, 3\)"):
        load_gru_state(tmp_path, ema_of(a=(3, 2), b=(4,)))
    (tmp_path / GRU_STATE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="expected what a GRU run saves, got something else"):
        load_gru_state(tmp_path, ema)
    torch.save({"format": 99, "ema": {}, "counts": {}}, tmp_path / GRU_STATE)
    with pytest.raises(ValueError, match="expected format 1, got 99; upgrade gru_fast"):
        load_gru_state(tmp_path, ema)


def test_a_state_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"format": 1, "ema": Evil(), "counts": {}}, tmp_path / GRU_STATE)
    with pytest.raises(ValueError, match="got something else"):
        load_gru_state(tmp_path, ema_of(a=(1,)))
    assert not (tmp_path / "made").exists()


def test_fit_is_told_from_names_both_have(tmp_path: Path) -> None:
    model = tiny.llama()
    model.save_pretrained(tmp_path)
    check_fits(tmp_path, model)
    check_fits(tmp_path, torch.nn.Linear(2, 2))  # nothing to compare
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "phi"}))
    with pytest.raises(ValueError, match="expected model_type llama, got phi"):
        check_fits(tmp_path, model)
