"""Gradient difference: ascent on the forget data, descent on the retain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("gd", title="GD")
@dataclass(frozen=True)
class GD(Method):
    """Gradient difference: ``-CE_f + retain_weight * CE_r``, two token means."""

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return -batch.forget.mean_nll

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
