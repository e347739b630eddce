"""UNDIAL with the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.undial import undial_loss


@register("undial_gd", title="UNDIAL+GD")
@dataclass(frozen=True)
class UNDIALGD(Method):
    """``UNDIAL + retain_weight * CE_r``: the unified framework tries weights of 1, 2 and 5; not in the paper."""

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    logits: ClassVar[bool] = True
    reference_model: ClassVar[bool] = True
    beta: float = hyper(10.0, "how much the teacher's logit of the true token is lowered", at_least=0.0)
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return undial_loss(batch, self.beta)

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
