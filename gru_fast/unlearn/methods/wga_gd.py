"""WGA with the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.wga import wga_loss


@register("wga_gd", title="WGA+GD")
@dataclass(frozen=True)
class WGAGD(Method):
    """``WGA + retain_weight * CE_r``, the latter a token mean; the unified framework calls it WGA.

    The framework keeps a reference model for it too, which nothing reads unless its retain term is a KL divergence.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    beta: float = hyper(1.0, "power of the token probability in its weight; 0 is GD", at_least=0.0)
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return wga_loss(batch.forget, self.beta)

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
