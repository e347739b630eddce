"""Jobs with DeepSpeed for tests/unlearn/test_deepspeed.py, run in several processes or in one without it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import launched
import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Trainer, TrainingArguments

from gru_fast.data.pairs import PairCollator
from gru_fast.models.partitioned import put_together
from gru_fast.unlearn import GRUMixin, GRUOptions, UnlearnTrainer
from gru_fast.unlearn.engines import zero_config

_STEPS = {"optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": 1, "rectify": True, "max_steps": 3}


def configured(stage: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A configuration, ``more`` in its ``zero_optimization``. Offloading does not compile an optimizer of its own."""
    settled = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {"zero_optimization": {"stage": stage, **(more or {})}, **settled}


def skipped(folder: Path, zero: dict[str, Any] | None = None) -> tuple[dict[str, int], list[Tensor], float]:
    """A run whose second step has NaN in one process: counts, weights, and the last learning rate."""

    class Broken(UnlearnTrainer):
        def _forget_loss(self, model: Any, inputs: Any) -> Tensor:
            is_here = not dist.is_initialized() or dist.get_rank() == 0
            factor = float("nan") if self.state.global_step == 1 and is_here else 1.0
            return factor * super()._forget_loss(model, inputs)

    with launched.launched(zero=zero) as world:
        settings = {**_STEPS, "gradient_accumulation_steps": launched.ROWS_A_STEP // world, "weight_decay": 0.1}
        config = tiny.config(folder, method="ga", lr_scheduler_type="linear", **settings)
        trainer = Broken(tiny.llama(), config, train_dataset=launched.dataset())
        trainer.train()
        counts = trainer.gru_counts
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        return {"skipped": counts.skipped, "applied": counts.applied}, launched.weights(trainer.model), rates[-1]


def seen(stage: int, clipping: float | None) -> dict[str, Any]:
    """What DeepSpeed itself shows of a gradient of four times rank + 1, over a step of two micro-batches; lr is 1.

    Then the gradient is set to four times 3, and the step is made. ``clipping``: None leaves it out.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

    found: dict[str, Any] = {}
    with launched.launched(zero={"zero_optimization": {"stage": stage}}):
        layer = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.zeros_(layer.weight)
        weight = layer.weight
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            **({} if clipping is None else {"gradient_clipping": clipping}),
        }
        engine, *_ = deepspeed.initialize(model=layer, config=config, optimizer=torch.optim.SGD([weight], lr=1.0))
        rows = torch.full((1, 4), dist.get_rank() + 1.0)
        for name, is_boundary in (("first", False), ("last", True)):
            engine.set_gradient_accumulation_boundary(is_boundary)
            engine.backward(engine(rows).sum())
            try:
                found[name] = float(safe_get_full_grad(weight).mean())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                found[name] = type(error).__name__
        safe_set_full_grad(weight, torch.full((1, 4), 3.0))
        engine.step()
        with put_together([weight]):
            found["weight"] = float(weight.mean())
    return found


def clipping(folder: Path, zero: dict[str, Any], *, settled: bool) -> float:
    """What an engine clips to that was prepared from a configuration that does not say; ``settled``: as it is here."""
    leave = nullcontext() if settled else patch.object(zero_config, "settle", lambda *_: None)
    with launched.launched(zero=zero), leave:
        config = tiny.config(folder, method="ga", **{**_STEPS, "max_steps": 1})
        trainer = UnlearnTrainer(tiny.llama(), config, train_dataset=launched.dataset())
        trainer.train()
        return float(trainer.model_wrapped.gradient_clipping())


def mixin(folder: Path, zero: dict[str, Any] | None = None) -> tuple[list[Tensor], str]:
    """Another trainer behind GRUMixin, by TrainingArguments: its weights, and what it says of e before training."""

    class Difference(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            loss = model(**inputs["retain"]).loss - model(**inputs["forget"]).loss
            return (loss, None) if return_outputs else loss

    class Rectified(GRUMixin, Difference):
        gru = GRUOptions(gamma=0.3, tau=2.0)

    with launched.launched(zero=zero) as world:
        settings = {**_STEPS, "gradient_accumulation_steps": launched.ROWS_A_STEP // world, "max_grad_norm": 0.0}
        del settings["rectify"]
        args = TrainingArguments(
            str(folder), use_cpu=True, report_to="none", remove_unused_columns=False, disable_tqdm=True, **settings
        )
        data = {"train_dataset": launched.dataset(), "data_collator": PairCollator(0)}
        trainer = Rectified(tiny.llama(), args, **data)
        try:
            said = str(len(trainer.retain_ema)) if world == 1 else str(trainer.retain_ema)
        except RuntimeError as error:
            said = str(error)
        trainer.train()
        return launched.weights(trainer.model), said


def again(folder: Path, zero: dict[str, Any], first: str) -> str:
    """What a trainer says that is to train after ``first``: "train" or "evaluate"."""
    with launched.launched(zero=zero):
        config = tiny.config(folder, method="ga", **{**_STEPS, "max_steps": 1})
        data = launched.dataset()
        trainer = UnlearnTrainer(tiny.llama(), config, train_dataset=data, eval_dataset=data)
        getattr(trainer, first)()
        try:
            trainer.train()
        except RuntimeError as error:
            return str(error)
        return "trained"
