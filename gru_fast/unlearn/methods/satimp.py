"""SatImp: gradient ascent that leaves alone what is given up already, and what is certain anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("satimp", title="SatImp")
@dataclass(frozen=True)
class SatImp(Method):
    """``forget_weight * mean over label tokens of p^beta1 (1 - p)^beta2 log p + retain_weight * CE_r``.

    The weights have no gradient: ``p^beta1`` leaves alone what the model has given up already (saturation),
    ``(1 - p)^beta2`` what it is certain of anyway (importance). beta1 0 and beta2 0 is GD; beta2 0 alone WGA + GD.

    Paper: arXiv 2505.11953. The defaults (beta 5 and 1, weights 1 and 0.1) are its own, chosen for extraction strength.
    The unified framework has them in its class and swaps the weights (0.1 and 1) in the configuration that is used.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    beta1: float = hyper(
        5.0, "power of p in the weight of a token: the larger, the sooner forgetting stops", at_least=0.0
    )
    beta2: float = hyper(1.0, "power of 1 - p in the weight of a token", at_least=0.0)
    forget_weight: float = hyper(1.0, "weight of the forget loss", above=0.0)
    retain_weight: float = hyper(0.1, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        log_probs = batch.forget.log_probs
        held = log_probs.detach()
        weights = (self.beta1 * held).exp() * (-held.expm1()) ** self.beta2  # 1 - p without cancellation
        return self.forget_weight * (weights * log_probs).mean()

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
