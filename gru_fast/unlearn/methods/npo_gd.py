"""NPO with the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.npo import npo_loss


@register("npo_gd", title="NPO+GD")
@dataclass(frozen=True)
class NPOGD(Method):
    """``NPO + retain_weight * CE_r``, the latter a token mean; the unified framework calls it NPO."""

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reference_log_probs: ClassVar[tuple[str, ...]] = ("forget",)
    beta: float = hyper(0.1, "inverse temperature of NPO", above=0.0)
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return npo_loss(batch.forget, self.beta)

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
