"""Steps that 16 bits round away: by hand, against the spacing of the numbers, and in a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gru_fast.unlearn import UnlearnTrainer
from gru_fast.unlearn.finetune import FinetuneConfig, finetune_trainer
from gru_fast.unlearn.lost_steps import changed, sample, share_below_spacing


def test_steps_below_half_of_the_spacing_are_lost() -> None:
    """Between 1 and 2 bfloat16 has a spacing of 2^-7; below 1 of 2^-8; ties go to the even neighbour."""
    weights = [torch.tensor([1.0, 1.5, -1.5, 0.0], dtype=torch.bfloat16), torch.tensor([3.0], dtype=torch.bfloat16)]
    assert share_below_spacing(weights, 2.0**-10) == 4 / 5  # 0 moves by anything
    assert share_below_spacing(weights, 1.25 * 2.0**-9) == 3 / 5  # below 1 the neighbour is half as far
    assert share_below_spacing(weights, 1.25 * 2.0**-8) == 1 / 5
    assert share_below_spacing(weights, 1.25 * 2.0**-7) == 0
    assert share_below_spacing([], 1.0) == 0


@pytest.mark.parametrize(("dtype", "bits", "step"), [(torch.bfloat16, 8, 3e-5), (torch.float16, 11, 4e-6)])
def test_share_of_random_weights(dtype: torch.dtype, bits: int, step: float) -> None:
    """Against the spacing by its definition; within a binade, so that both neighbours are as far."""
    weights = (torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    spacing = [2.0 ** (math.frexp(abs(w))[1] - bits) for w in weights.double().tolist()]
    expected = sum(step < s / 2 for s in spacing) / len(spacing)
    assert share_below_spacing([weights], step) == pytest.approx(expected, abs=0.01)
    assert 0.02 < expected < 0.98


def test_a_sample_is_spread_over_all_parameters() -> None:
    params = [torch.arange(100_000.0), torch.zeros(()), torch.arange(200_000.0).reshape(2, -1)]
    found = sample(params)
    assert [tensor.numel() for tensor in found] == [25_000, 1, 50_000]
    assert found[0][:3].tolist() == [0, 4, 8]
    assert changed(found, found) == 0
    params[0].add_(1)
    assert changed(found, sample(params)) == pytest.approx(25_000 / 75_001)


@pytest.mark.parametrize("kind", ["unlearn", "finetune"])
def test_lost_steps_are_told(tmp_path: Path, kind: str) -> None:
    trainer = made(kind, tmp_path, torch.bfloat16, learning_rate=1e-5)
    with pytest.warns(RuntimeWarning, match="learning_rate 1e-05: a step of that size is rounded away in .* bfloat16"):
        trainer.train()
    share = trainer.state.log_history[-1]["weights_changed"]
    before = [p.clone() for p in tiny.llama(dtype=torch.bfloat16).parameters()]
    exact = changed(before, list(trainer.model.parameters()))
    assert 0 < share < 0.3
    assert share == pytest.approx(exact, abs=1e-9)  # a model so small is looked at whole


@pytest.mark.parametrize("kind", ["unlearn", "finetune"])
def test_where_nothing_is_lost_nothing_is_said(tmp_path: Path, kind: str) -> None:
    """Warnings are errors here."""
    trainer = made(kind, tmp_path / "large", torch.bfloat16, learning_rate=0.01)
    trainer.train()
    assert trainer.state.log_history[-1]["weights_changed"] > 0.5
    trainer = made(kind, tmp_path / "wide", torch.float32, learning_rate=1e-9)
    trainer.train()
    assert "weights_changed" not in trainer.state.log_history[-1]


def made(kind: str, folder: Path, dtype: torch.dtype, **settings: Any) -> Any:
    model = tiny.llama(dtype=dtype)
    if kind == "unlearn":
        return UnlearnTrainer(model, tiny.config(folder, **settings), train_dataset=tiny.dataset())
    config = FinetuneConfig(
        str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", num_train_epochs=1, warmup_steps=0, **settings
    )

    class Tokenizer:
        pad_token_id = 0

        def save_pretrained(self, *_: Any) -> None: ...

    return finetune_trainer(model, config, tiny.rows(12, 1), Tokenizer())
