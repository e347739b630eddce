"""What the demo trains, and why so.

Fine-tuning stops before the answers are learned by heart entirely (Probability 0.96; 0.93 in the published models).
Further on, the retain loss is next to 0 and so is its gradient: the first order, all that a projection can act on, then
says nothing about what unlearning will destroy.

A batch of 4 rows to keep shows little of what there is to lose: its gradient has a cosine of some 0.2 with that of all
rows, the average over the last ten batches one of 0.5 and more. gamma = 0.1 is that average, of about 40 rows (the
paper's 0.8 is for batches of 32). GD, whose gradient holds the retain gradient of the same batch already, can only
learn from older batches. No clipping: whatever GRU changes is the projection's doing.

GA and NPO get 5 epochs, as on TOFU, in which GA without GRU destroys the model there and here. GD holds itself back
and gets 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

METHODS = ("ga", "gd", "npo")


@dataclass(frozen=True)
class Settings:
    """All that changes what the demo's runs come to."""

    seed: int = 0
    finetune_epochs: int = 20
    ga_epochs: int = 5
    npo_epochs: int = 5
    gd_epochs: int = 10
    max_new_tokens: int | None = None  # of a written answer; None: what the benchmark allows
    max_rows: int = 300  # of each set that is evaluated
    looks: int = 12  # at a run's progress, for path.png

    def finetuning(self) -> dict[str, Any]:
        """Options of gru-fast finetune."""
        return {
            "num_train_epochs": self.finetune_epochs,
            "learning_rate": 3e-3,
            "warmup_steps": 0.1,
            "adam_beta2": 0.98,
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "logging_steps": 20,
            **self._common(),
        }

    def unlearning(self, method: str, rectify: bool) -> dict[str, Any]:
        """Options of gru-fast unlearn. ``monitor``: a run without GRU logs the same angles."""
        return {
            "method": method,
            "rectify": rectify,
            "monitor": not rectify,
            "gamma": 0.1,
            "num_train_epochs": getattr(self, f"{method}_epochs"),
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            **self._common(),
        }

    def _common(self) -> dict[str, Any]:
        return {"seed": self.seed, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}


QUICK = Settings(finetune_epochs=1, ga_epochs=1, npo_epochs=1, gd_epochs=1, max_new_tokens=4, max_rows=8, looks=2)
