"""The dual variable of PDU: followed by hand through runs with and without GRU, and through checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gru_fast.unlearn.dual import DUAL, DualVariable
from gru_fast.unlearn.methods import make

OPTIONS = {"retain_weight": 2.0, "eps": 3.9, "dual_step": 3.0, "warm_up_epochs": 1}


def test_it_follows_the_constraint() -> None:
    dual = DualVariable(make("pdu", {"retain_weight": 1.0, "eps": 0.5, "dual_step": 2.0, "warm_up_epochs": 1}))
    same = torch.Tensor.clone

    def step(epoch: int, *losses: float) -> float:
        for loss in losses:
            dual.see(torch.tensor(loss))
        dual.step(epoch, same)
        return dual.value

    assert dual.value == 1.0
    assert step(0, 2.0) == 1.0  # the warm-up
    assert step(1, 1.0, 2.0) == 1.0 + 2.0 * (1.5 - 0.5)
    assert step(1, 0.0) == 3.0 - 2.0 * 0.5
    assert step(2, 0.0, 0.0) == 1.0
    assert step(2, float("nan")) == 1.0
    assert step(2, 0.0) == step(2, 0.0) == 0.0  # never below
    assert step(2, 1.0) == 1.0  # and up again


@pytest.mark.parametrize("settings", [{"rectify": False}, {"rectify": True}, {"rectify": True, "stream": True}])
def test_a_run_follows_it(settings: dict[str, Any], tmp_path: Path) -> None:
    """The mean retain loss of each step is logged; the weight of step n + 1 follows from it."""
    trainer = tiny.trainer(tmp_path, method="pdu", method_options=OPTIONS, num_train_epochs=3, **settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 9
    expected = 2.0
    for step, entry in enumerate(entries):
        assert entry["dual"] == pytest.approx(expected, rel=1e-6)
        assert entry["loss"] == pytest.approx(entry["forget_loss"] + expected * entry["retain_loss"], rel=1e-4)
        if step >= 3:  # epochs of 3 steps
            expected = max(0.0, expected + 3.0 * (entry["retain_loss"] - 3.9))
    assert trainer.dual.value == pytest.approx(expected, rel=1e-6)
    assert expected != 2.0


def test_at_zero_the_retain_loss_is_still_watched(tmp_path: Path) -> None:
    options = {"retain_weight": 0.0, "eps": 1.0, "dual_step": 1.0, "warm_up_epochs": 0}
    trainer = tiny.trainer(tmp_path, method="pdu", method_options=options)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[0]["dual"] == 0.0
    assert entries[1]["dual"] == pytest.approx(entries[0]["retain_loss"] - 1.0, rel=1e-6)


@pytest.mark.parametrize("rectify", [False, True])
def test_a_run_resumes_bit_for_bit(rectify: bool, tmp_path: Path) -> None:
    settings = {
        "method": "pdu", "method_options": OPTIONS, "rectify": rectify, "num_train_epochs": 3, "save_strategy": "steps",
        "save_steps": 5,
    }  # fmt: skip
    whole = tiny.trainer(tmp_path, **settings)
    whole.train()
    again = tiny.trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.dual.value == whole.dual.value
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


def test_checkpoints_that_have_none(tmp_path: Path) -> None:
    dual = DualVariable(make("pdu"))
    with pytest.raises(FileNotFoundError, match=r"dual\.json: no such file; the checkpoint was not saved by pdu"):
        dual.load(tmp_path)
    for content in ("{", "{}", json.dumps({"dual": None})):
        (tmp_path / DUAL).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"dual\.json: expected what pdu saves, got something else"):
            dual.load(tmp_path)
    assert dual.value == 100.0
