"""The options of an evaluation while `gru-fast unlearn` trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EpochOptions:
    """How the benchmark evaluates while the model is trained."""

    eval_epochs: int | None = field(
        default=None,
        metadata={
            "help": "evaluate as gru-fast eval does, before training, after every so many epochs and at the end; the "
            "model with the best removal of those that keep --share goes to best/ in the run's folder"
        },
    )
    retain_logs: str | None = field(
        default=None,
        metadata={"help": "evaluation of the retrained model, for Forget Quality there: its run, or a log"},
    )
    share: float = field(
        default=0.9, metadata={"help": "of the Model Utility before training, what the best model keeps at least"}
    )
    eval_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "options of gru-fast eval BENCHMARK there, such as quick=true"}
    )

    def __post_init__(self) -> None:
        problems = []
        if self.eval_epochs is not None and self.eval_epochs < 1:
            problems.append(f"eval_epochs: expected a whole number of at least 1, got {self.eval_epochs}")
        if not 0 <= self.share <= 1:
            problems.append(f"share: expected a number in [0, 1], got {self.share}")
        given = [name for name in ("retain_logs", "eval_options") if getattr(self, name)]
        if given and self.eval_epochs is None:
            problems.append(f"{given[0]}: expected eval_epochs as well; nothing is evaluated while training without")
        if problems:
            raise ValueError("; ".join(problems))
