"""SimNPO with the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.simnpo import simnpo_loss


@register("simnpo_gd", title="SimNPO+GD")
@dataclass(frozen=True)
class SimNPOGD(Method):
    """``forget_weight * SimNPO + retain_weight * CE_r``, the latter a token mean.

    The paper gives none of the numbers. The defaults (beta 4.5, weights 0.125 and 1) are those of the method's authors
    for TOFU forget10 (2.5, 0.1375 and 1 for forget05) and of the unified framework. The public GRU code has beta 0.1,
    forget_weight 1 and retain_weight 0.1.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    beta: float = hyper(4.5, "inverse temperature, of the mean NLL per token", above=0.0)
    delta: float = hyper(0.0, "reward margin: mean NLL per token at which SimNPO is 2 ln 2 / beta")
    forget_weight: float = hyper(0.125, "weight of SimNPO", above=0.0)
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return self.forget_weight * simnpo_loss(batch.forget, self.beta, self.delta)

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
