"""Weighted gradient ascent: tokens the model has given up already are left alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("wga", title="WGA")
@dataclass(frozen=True)
class WGA(Method):
    """Weighted gradient ascent: ``mean over label tokens of p^beta * log p``, the weight ``p^beta`` without gradient.

    The paper gives no beta. The default 1 is that of the method's authors and of the unified framework; the public GRU
    code feeds it the option it shares with NPO (0.1). The unified framework's WGA adds the retain loss; the paper's
    does not, nor does this.
    """

    beta: float = hyper(1.0, "power of the token probability in its weight; 0 is GA", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        log_probs = batch.forget.log_probs
        weights = (self.beta * log_probs.detach()).exp()
        return (weights * log_probs).mean()
