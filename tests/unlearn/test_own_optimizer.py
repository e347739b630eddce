"""``optim=gru_adamw`` and ``rectify_update``: the trainer with an optimizer that rectifies its own step."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from gru_fast import RetainEMA
from gru_fast.optim import AdamW
from gru_fast.unlearn import GRUMixin, GRUOptions, UnlearnTrainer

OURS = {"optim": "gru_adamw", "rectify": True, "gamma": 1.0, "learning_rate": 1e-2, "weight_decay": 2.0}


def trained(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    trainer = tiny.trainer(folder, tiny.llama(dtype=dtype), **{"method": "ga", "save_strategy": "no", **settings})
    trainer.train()
    return trainer


def weights(trainer: Any) -> list[Tensor]:
    return [param.detach().clone() for param in trainer.model.parameters()]


def logs(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("stream", "rectifier"), [(False, "gru"), (True, "gru"), (False, "pcgrad")])
def test_without_the_update_it_is_torchs(stream: bool, rectifier: str, tmp_path: Path) -> None:
    settings = {**OURS, "stream": stream, "tau": 1.0, "num_train_epochs": 3}
    settings |= {"rectifier": rectifier, "rectify_against": "ema"}
    ours = trained(tmp_path / "ours", **settings)
    theirs = trained(tmp_path / "theirs", **{**settings, "optim": "adamw_torch_fused"})
    assert isinstance(ours.rectifying_optimizer, AdamW)
    assert any(entry["conflict"] for entry in logs(ours))
    for entry, expected in zip(logs(ours), logs(theirs), strict=True):
        assert "update_cos" not in entry
        assert entry["cos"] == pytest.approx(expected["cos"], rel=1e-4)
        assert entry["norm_after"] == pytest.approx(expected["norm_after"], rel=1e-4)
    for a, b, start in zip(weights(ours), weights(theirs), tiny.llama().parameters(), strict=True):
        assert float((a - b).norm()) <= 1e-3 * float((b - start.detach()).norm())


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_the_update_is_rectified_and_logged(metric: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, rectify_update=True, update_metric=metric, num_train_epochs=3, **OURS)
    found = logs(trainer)
    assert any(entry["update_conflict"] for entry in found)
    for entry in found:
        assert entry["update_cos_after"] >= 0.0
        assert entry["update_conflict"] == float(entry["update_cos"] < 0.0)


def test_what_torchs_optimizer_would_do_is_logged(tmp_path: Path) -> None:
    settings = {**OURS, "optim": "adamw_torch", "num_train_epochs": 3}
    watched = trained(tmp_path / "watched", monitor_update=True, **settings)
    alone = trained(tmp_path / "alone", **settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(watched), weights(alone), strict=True))
    found = logs(watched)
    assert any(entry["update_conflict"] for entry in found)
    assert all(entry["update_cos_after"] == entry["update_cos"] for entry in found)
    # The first step is the same as the one that is rectified.
    first = logs(trained(tmp_path / "ours", rectify_update=True, **OURS))[0]
    assert found[0]["update_cos"] == pytest.approx(first["update_cos"], rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {"update_metric": "adam"}),
        (torch.bfloat16, {"ema_dtype": "bfloat16"}),
    ],
)
def test_it_resumes_bit_for_bit(dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path) -> None:
    every = {**OURS, **settings, "rectify_update": True, "save_strategy": "steps", "save_steps": 4}
    whole = trained(tmp_path, dtype, num_train_epochs=3, **every)
    assert whole.state.global_step == 9
    shutil.rmtree(tmp_path / "checkpoint-8")
    shutil.rmtree(tmp_path / "checkpoint-9", ignore_errors=True)
    resumed = tiny.trainer(tmp_path, tiny.llama(dtype=dtype), **{"method": "ga", "num_train_epochs": 3, **every})
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            mine, theirs = (t.rectifying_optimizer.state[p][name] for t, p in ((resumed, a), (whole, b)))
            assert torch.equal(mine, theirs)
            assert mine.dtype == dtype


def test_bfloat16_weights_move_at_a_small_learning_rate(tmp_path: Path) -> None:
    settings = {**OURS, "learning_rate": 1e-5, "rectify": False}
    ours = trained(tmp_path / "ours", torch.bfloat16, **settings)  # and no warning, which would be an error here
    with pytest.warns(RuntimeWarning, match="is rounded away"):
        theirs = trained(tmp_path / "theirs", torch.bfloat16, **{**settings, "optim": "adamw_torch"})
    shares = [
        next(entry["weights_changed"] for entry in t.state.log_history if "weights_changed" in entry)
        for t in (ours, theirs)
    ]
    assert shares[0] > 3 * shares[1]


def test_a_step_with_nan_moves_nothing(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, method="ga", save_strategy="no", rectify_update=True, gradient_accumulation_steps=1, **OURS
    )
    losses, before = [], []
    compute = trainer.compute_loss

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        losses.append(1)
        if len(losses) == 2:
            before.append(weights(trainer))
        if len(losses) == 3:
            assert all(torch.equal(a, b) for a, b in zip(weights(trainer), before[0], strict=True))
        return compute(*args, **kwargs) * (math.nan if len(losses) == 2 else 1.0)

    trainer.compute_loss = spoilt
    trainer.train()
    assert len(losses) > 3
    assert trainer.gru_counts.skipped == 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rectify_update": True, "rectify": True}, "rectify_update: expected optim gru_adamw beside it"),
        ({"rectify_update": True, "optim": "gru_adamw"}, "rectify_update: expected rectify beside it"),
        (
            {"optim": "gru_adamw", "rectify": True, "rectifier": "sago", "rectify_against": "ema"},
            "rectifier: expected one that goes by sums with optim gru_adamw, got sago",
        ),
        (
            {"optim": "gru_adamw", "rectify": True, "rectifier": "a_gem"},
            "rectify_against: expected ema with optim gru_adamw, got retain",
        ),
        (
            {"optim": "gru_adamw", "rectify": True, "granularity": "tensor"},
            "granularity: expected global with optim gru_adamw, got tensor",
        ),
        (
            {"optim": "gru_adamw", "rectify": True, "rectify_against": "retain"},
            "rectify_against: expected ema with optim gru_adamw, got retain",
        ),
        (
            {"optim": "gru_adamw", "rectify": True, "rectify_update": True, "rectifier": "a_gem"},
            "rectify_update: expected rectifier gru, the one rule for steps, got a_gem",
        ),
        ({"optim": "gru_adam"}, "gru_adam"),
        ({"monitor_update": True}, "monitor_update: expected rectify or monitor beside it"),
        ({"monitor_update": True, "rectify": True, "optim": "sgd"}, "monitor_update: expected optim adamw_torch"),
        (
            {"monitor_update": True, "rectify": True, "optim": "adamw_torch_8bit"},
            "monitor_update: expected optim adamw_torch or adamw_torch_fused, got adamw_torch_8bit",
        ),
        ({"update_metric": "cosine", "rectify": True}, "update_metric: expected one of euclidean, adam"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        tiny.config(tmp_path, **settings)


def test_clipping_by_the_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_grad_norm: expected 0 with optim gru_adamw or rectify_update"):
        tiny.trainer(tmp_path, max_grad_norm=0.5, **OURS)


class Plain(GRUMixin, Trainer):
    gru = GRUOptions(gamma=0.3, rectify_update=True)


def test_any_trainer_can_have_it(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0.0)
    trainer = Plain(tiny.llama(), args)
    assert isinstance(trainer.create_optimizer(), AdamW)
    own = torch.optim.SGD(trainer.model.parameters())
    with pytest.raises(ValueError, match="optimizers: expected none with optim gru_adamw or rectify_update, got SGD"):
        Plain(tiny.llama(), args, optimizers=(own, None))
    own = AdamW(trainer.model.parameters())
    with pytest.raises(ValueError, match="optimizers: expected none with optim gru_adamw or rectify_update, got AdamW"):
        Plain(tiny.llama(), args, optimizers=(own, None))
    with pytest.raises(ValueError, match=r"optimizer_cls_and_kwargs: expected none with .*, got SGD"):
        Plain(tiny.llama(), args, optimizer_cls_and_kwargs=(torch.optim.SGD, {}))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0.0, optim="adafactor")
    with pytest.raises(ValueError, match=r"optim: expected one of gru_adamw, adamw_torch, .*, got adafactor"):
        Plain(tiny.llama(), args)


@pytest.mark.parametrize("options", [{}, {"rectify_update": True}, {"rectify": False}])
def test_an_average_of_the_callers_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0.0)
    model = tiny.llama()
    own = AdamW(model.parameters(), ema=RetainEMA(model.parameters()), gamma=0.5)
    with pytest.raises(ValueError, match="optimizers: expected an AdamW without an ema, since the trainer keeps"):
        Plain(model, args, gru=options, optimizers=(own, None))


def test_an_adamw_of_the_callers_steps_by_the_rectified_gradient(tmp_path: Path) -> None:
    settings = {**OURS, "optim": "adamw_torch_fused", "num_train_epochs": 3, "weight_decay": 0.0}
    theirs = trained(tmp_path / "theirs", **settings)
    model = tiny.llama()
    given = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    config = tiny.config(tmp_path / "ours", method="ga", save_strategy="no", **settings)
    ours = UnlearnTrainer(model, config, train_dataset=tiny.dataset(), optimizers=(given, None))
    ours.train()
    assert ours.rectifying_optimizer is None
    assert any(entry["conflict"] for entry in logs(ours))
    for a, b, start in zip(weights(ours), weights(theirs), tiny.llama().parameters(), strict=True):
        assert float((a - b).norm()) <= 1e-3 * float((b - start.detach()).norm())


def test_a_trainer_that_takes_no_class_of_optimizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0.0)
    trainer = Plain(tiny.llama(), args)
    monkeypatch.delattr(trainer, "optimizer_cls_and_kwargs")  # as in transformers 4.45 and 4.46
    with pytest.raises(ValueError, match=r"rectify_update: expected transformers 4\.47 or later, whose"):
        trainer.check_optimizer()
