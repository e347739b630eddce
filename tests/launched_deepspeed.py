"""Jobs with DeepSpeed for tests/unlearn/test_deepspeed.py, run in several processes or in one without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launched
import tiny
import torch.distributed as dist
from torch import Tensor

from gru_fast.unlearn import UnlearnTrainer

_STEPS = {"optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": 1, "rectify": True, "max_steps": 3}


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
