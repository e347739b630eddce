"""Weighted gradient ascent: tokens the model has given up already are left alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gru_fast.models.scores import Scores
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


def wga_loss(forget: Scores, beta: float) -> Tensor:
    """``mean over label tokens of p^beta * log p``, a scalar; the weight ``p^beta`` has no gradient."""
    log_probs = forget.log_probs
    return ((beta * log_probs.detach()).exp() * log_probs).mean()


@register("wga", title="WGA")
@dataclass(frozen=True)
class WGA(Method):
    """Weighted gradient ascent: :func:`wga_loss` alone.

    The paper gives no beta. The default 1 is that of the method's authors and of the unified framework; the public GRU
    code feeds it the option it shares with NPO (0.1). The unified framework's default adds the retain loss (that is
    ``wga_gd``).
    """

    beta: float = hyper(1.0, "power of the token probability in its weight; 0 is GA", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return wga_loss(batch.forget, self.beta)
