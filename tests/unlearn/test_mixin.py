"""GRUMixin in front of trainers that know nothing of it, written in the manner of the unified framework."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from gru_fast import Rectification
from gru_fast.core import stats as fields
from gru_fast.unlearn import GRUMixin, GRUOptions, PairCollator, UnlearnDataset, UnlearnTrainer


class FrameworkTrainer(Trainer):
    """Batches are {"forget": ..., "retain": ...}; evaluation is its own business."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return {}


class Ascent(FrameworkTrainer):
    """No retain loss of its own."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**{name: inputs["forget"][name] for name in ("input_ids", "attention_mask", "labels")})
        return (-outputs.loss, outputs) if return_outputs else -outputs.loss


class Difference(FrameworkTrainer):
    """Its gamma and alpha weigh the two losses, and come first."""

    def __init__(self, gamma: float = 1.0, alpha: float = 1.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma, self.alpha = gamma, alpha

    def compute_retain_loss(self, model: nn.Module, retain_inputs: Any) -> Tensor:
        loss: Tensor = model(**retain_inputs).loss
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        parts = {
            part: {name: inputs[part][name] for name in ("input_ids", "attention_mask", "labels")}
            for part in ("forget", "retain")
        }
        loss = -self.gamma * model(**parts["forget"]).loss
        loss = loss + self.alpha * self.compute_retain_loss(model=model, retain_inputs=parts["retain"])
        return (loss, {}) if return_outputs else loss


class GRUAscent(GRUMixin, Ascent):
    gru = GRUOptions(gamma=0.3, tau=2.0)


class GRUDifference(GRUMixin, Difference):
    gru = GRUOptions(gamma=0.3, tau=2.0)


class IndexedCollator(PairCollator):
    """Adds what a model's forward does not take."""

    def __call__(self, items: Any) -> Any:
        batch = super().__call__(items)
        return {part: {**values, "index": torch.arange(len(items))} for part, values in batch.items()}


def arguments(tmp_path: Path, **settings: Any) -> TrainingArguments:
    quiet: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(tmp_path), **{**quiet, **settings})


def make(cls: type[Trainer], tmp_path: Path, *args: Any, data: Any = None, settings: Any = None, **kwargs: Any) -> Any:
    return cls(
        *args,
        model=tiny.llama(),
        args=arguments(tmp_path, **(settings or {})),
        data_collator=IndexedCollator(0),
        train_dataset=tiny.dataset() if data is None else data,
        **kwargs,
    )


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach() for p in trainer.model.parameters()]


class OwnLoss(GRUMixin, Trainer):
    """Has both losses in its own body."""

    gru = GRUOptions(gamma=0.3, tau=2.0)
    compute_loss = Ascent.compute_loss
    compute_retain_loss = Difference.compute_retain_loss


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("cls", "method"), [(GRUAscent, "ga"), (OwnLoss, "ga"), (GRUDifference, "gd")])
def test_three_lines_give_any_trainer_the_same_step(cls: Any, method: str, stream: bool, tmp_path: Path) -> None:
    theirs = make(cls, tmp_path, gru=GRUOptions(gamma=0.3, tau=2.0, stream=stream))
    theirs.train()
    settings = {"learning_rate": 0.05, "optim": "sgd", "weight_decay": 0.0}
    ours = tiny.trainer(tmp_path, method=method, rectify=True, gamma=0.3, tau=2.0, stream=stream, **settings)
    assert isinstance(ours, UnlearnTrainer)
    ours.train()
    start = [p.detach() for p in tiny.llama().parameters()]
    for a, b, c in zip(weights(theirs), weights(ours), start, strict=True):
        assert float((a - b).norm()) <= 2e-4 * float((b - c).norm()) + 1e-8
    entry = next(entry for entry in theirs.state.log_history if "loss" in entry)
    assert {"cos", "angle_after", "retain_loss", "conflict", "clipped", "skipped"} <= set(entry)


def test_options_come_from_the_class_the_constructor_or_a_mapping(tmp_path: Path) -> None:
    assert make(GRUDifference, tmp_path).gru_options == GRUOptions(gamma=0.3, tau=2.0)
    assert make(GRUDifference, tmp_path, gru={"gamma": 0.5}).gru_options == GRUOptions(gamma=0.5)

    class Plain(GRUMixin, Difference):
        pass

    assert make(Plain, tmp_path).gru_options == GRUOptions()
    trainer = make(Plain, tmp_path, gru=GRUOptions(gamma=0.1), gamma=3.0)
    assert (trainer.gamma, trainer.gru_options.gamma) == (3.0, 0.1)  # its own, and GRU's


def test_switched_off_it_is_the_trainer_behind(tmp_path: Path) -> None:
    off, behind = make(GRUDifference, tmp_path, gru={"rectify": False}), make(Difference, tmp_path)
    for trainer in (off, behind):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(off), weights(behind), strict=True))
    assert all("cos" not in entry for entry in off.state.log_history)


def test_monitor_leaves_the_trainer_behind_alone(tmp_path: Path) -> None:
    watched = make(GRUDifference, tmp_path, gru={"rectify": False, "monitor": True})
    behind = make(Difference, tmp_path)
    for trainer in (watched, behind):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(watched), weights(behind), strict=True))
    assert all("cos" in entry for entry in watched.state.log_history if "loss" in entry)


def test_it_resumes_like_any_trainer(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = make(GRUDifference, tmp_path / "whole", settings=settings)
    whole.train()
    resumed = make(GRUDifference, tmp_path / "whole", settings=settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.retain_ema.step == whole.retain_ema.step == 6
    # The rows drawn to retain are those of the epoch, which a plain Trainer tells some datasets only.
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


@pytest.mark.parametrize(
    ("cls", "kwargs", "error", "match"),
    [
        (GRUDifference, {"gru": {"gama": 1}}, ValueError, r'gru: expected some of rectify, .*gamma, .*, got "gama"'),
        (GRUDifference, {"gru": 0.8}, TypeError, "gru: expected GRUOptions or a mapping of its fields, got float"),
        (GRUDifference, {"gru": {"gamma": 1.5}}, ValueError, r"gamma: expected a number in \[0, 1\]"),
        (GRUDifference, {"settings": {"optim": "lomo"}}, ValueError, "optim: expected one that steps after backward"),
    ],
)
def test_wrong_options_are_named(cls: Any, kwargs: Any, error: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        make(cls, tmp_path, **kwargs)


def test_base_classes_in_the_wrong_order_are_noticed() -> None:
    with pytest.raises(TypeError, match="WrongOrder: name GRUMixin first among the base classes"):

        class WrongOrder(Difference, GRUMixin):
            pass


def test_a_tau_that_trainers_own_clipping_undoes_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"max_grad_norm=1 clips below tau=2, .* set max_grad_norm=0"):
        make(GRUDifference, tmp_path, settings={"max_grad_norm": 1.0})
    # Warnings are errors here: these give none.
    make(GRUDifference, tmp_path, settings={"max_grad_norm": 2.0})
    for gru in ({"tau": None}, {"tau": math.inf}, {"tau": 2.0, "rectify": False}):
        make(GRUDifference, tmp_path, settings={"max_grad_norm": 1.0}, gru=gru)


def test_a_batch_without_retain_data_is_named(tmp_path: Path) -> None:
    trainer = make(GRUAscent, tmp_path, data=UnlearnDataset(tiny.rows(8, 1)))
    with pytest.raises(ValueError, match=r'batch: expected a part "retain" .*, got forget'):
        trainer.train()


def test_fsdp_1_keeps_the_gradients_and_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(GRUDifference, tmp_path)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"GRUDifference: GRU does not work with FSDP 1's .*; use FSDP2"):
        trainer._check_supported()


def test_a_step_that_nobody_looked_into_blames_both_gradients(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, method="ga", rectify=True)
    stats = fields.of_nothing()
    stats[fields.VETOED] = 1.0  # as with a loss scale
    trainer._last_step = Rectification(stats)
    assert "NaN or Inf in the unlearning or retain gradient; lower" in trainer._why_stopped("all 2 steps")
