"""How LoRA starts: no gradient for A while B is zero, and a run that stops where B stays so."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from gru_fast.data.sequences import Encoded
from gru_fast.models.adapters import with_lora
from gru_fast.unlearn import UnlearnConfig
from gru_fast.unlearn.finetune import FinetuneConfig, finetune_trainer
from gru_fast.unlearn.lora_start import LoraShare, LoraStart


def lora(targets: list[str] | None = None) -> Any:
    torch.manual_seed(1)
    return with_lora(tiny.llama(), r=2, alpha=4, dropout=0.0, targets=targets)


class Named(nn.Module):
    """Parameters by names with dots."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.params = {name: nn.Parameter(value) for name, value in values.items()}

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return iter(self.params.items())


def zero_gradients(model: Any) -> None:
    for name, param in model.named_parameters():
        if "lora_" in name:
            param.register_hook(torch.zeros_like)


# ---- A's share -------------------------------------------------------------------------------------------------------


def test_share_by_hand() -> None:
    model = Named({"lora_A.w": torch.zeros(2), "lora_B.w": torch.zeros(2), "other": torch.zeros(1)})
    share = LoraShare(model.named_parameters())
    assert share
    assert share.of_gradient() == 0
    model.params["lora_A.w"].grad = torch.tensor([3.0, 0.0])
    model.params["lora_B.w"].grad = torch.tensor([0.0, 4.0])
    assert share.of_gradient() == pytest.approx(9 / 25)
    model.params["other"].grad = torch.tensor([5.0])
    assert share.of_gradient() == pytest.approx(9 / 50)
    assert not LoraShare(tiny.llama().named_parameters())


def test_share_beside_a_long_tensor() -> None:
    """Of modules that are trained whole, an embedding: eight running float32 sums would stay at 2^24 each."""
    long = torch.ones(1 << 20)
    long[:8] = 2.0**12
    model = Named({"lora_A.w": torch.zeros(1), "embedding": torch.zeros(1 << 20)})
    model.params["lora_A.w"].grad = torch.tensor([2.0**12])
    model.params["embedding"].grad = long
    share = LoraShare(model.named_parameters())
    assert float(share.of_gradient()) == pytest.approx(2**24 / (9 * 2**24 + (1 << 20) - 8), rel=1e-6)


@pytest.mark.parametrize("settings", [{"rectify": True}, {"monitor": True}, {"rectify": True, "stream": True}])
def test_the_first_cosine_is_of_b_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = tiny.trainer(tmp_path, lora(), method="gd", max_steps=2, **settings)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "cos" in entry)
    assert first["lora_a_share"] == 0
    assert -1 <= first["cos"] <= 1
    assert 0 < second["lora_a_share"] < 1


def test_without_adapters_nothing_is_logged(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, method="gd", rectify=True, max_steps=1)
    trainer.train()
    assert not any("lora_a_share" in entry for entry in trainer.state.log_history)


# ---- B moves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"rectify": True}])
def test_a_run_in_which_no_adapter_moves_is_stopped(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = lora()
    zero_gradients(model)
    trainer = tiny.trainer(tmp_path, model, method="gd", num_train_epochs=2, **settings)
    with pytest.raises(RuntimeError, match=r"^LoRA: after step 1 all 14 factors that start at zero are still there"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_so_is_a_finetuning(tmp_path: Path) -> None:
    model = lora()
    zero_gradients(model)
    rows: list[Encoded] = tiny.rows(4, 0)
    config = FinetuneConfig(
        str(tmp_path), max_steps=2, warmup_steps=0, save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    with pytest.raises(RuntimeError, match=r"^LoRA: after step 1 all 14 factors"):
        finetune_trainer(model, config, rows, None).train()


def test_reentrant_checkpoints_without_gradients_of_inputs(tmp_path: Path) -> None:
    """open-unlearning 178: the head's adapter has a gradient, and so the loss; those of the layers have none."""
    model = lora(["q_proj", "down_proj", "lm_head"])
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    base.disable_input_require_grads()
    trainer = tiny.trainer(tmp_path, model, method="gd", max_steps=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    ours = [str(each.message) for each in said if "LoRA" in str(each.message)]
    assert len(ours) == 1
    assert ours[0].startswith("LoRA: after step 1 4 of 5 factors that start at zero are still there (")
    assert "layers.0.self_attn.q_proj" in ours[0]


def test_checkpoints_as_the_trainer_makes_them_reach_all(tmp_path: Path) -> None:
    model = lora()
    flag = (
        "activation_checkpointing" if hasattr(UnlearnConfig, "activation_checkpointing") else "gradient_checkpointing"
    )
    settings = {flag: True, f"{flag}_kwargs": {"use_reentrant": True}}
    tiny.trainer(tmp_path, model, method="gd", max_steps=1, **settings).train()
    assert all(param.any() for name, param in model.named_parameters() if "lora_B" in name)


def test_a_step_that_was_skipped_or_of_rate_zero_says_nothing() -> None:
    model = Named({"lora_B.w": torch.zeros(3)})
    param = model.params["lora_B.w"]
    skipped = [True]
    start = LoraStart(lambda counts: counts, lambda: skipped[0])
    state = SimpleNamespace(global_step=1)

    def step(rate: float) -> None:
        start.on_pre_optimizer_step(None, state, None, optimizer=SimpleNamespace(param_groups=[{"lr": rate}]))
        start.on_step_end(None, state, None)

    start.on_train_begin(None, state, None, model=model)
    step(1e-3)
    skipped[0] = False
    step(0.0)  # a warm-up's first
    with pytest.raises(RuntimeError, match="no gradient reaches the adapters"):
        step(1e-3)
    start.on_train_begin(None, state, None, model=model)
    param.data.fill_(1e-8)
    step(1e-3)
    param.data.zero_()
    step(1e-3)  # it has moved once; it is not looked at again


def test_adapters_that_are_no_longer_new_and_other_processes() -> None:
    model = Named({"lora_B.w": torch.ones(3), "lora_B.v": torch.zeros(0)})
    asked: list[Tensor] = []

    def elsewhere(counts: Tensor) -> Tensor:
        """Another process, whose shard of the second has moved."""
        asked.append(counts)
        return counts + torch.tensor([0, 1])

    start = LoraStart(elsewhere, lambda: False)
    start.on_train_begin(None, None, None, model=model)
    assert [counts.tolist() for counts in asked] == [[1, 0]]
    start.on_pre_optimizer_step(None, None, None, optimizer=None)  # nothing to follow
    start.on_step_end(None, None, None)
