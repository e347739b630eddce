"""Negative preference optimization: ascent that fades as a sequence falls below what the model gave it before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from gru_fast.models.scores import Scores
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


def npo_loss(forget: Scores, beta: float) -> Tensor:
    """``(2 / beta) * mean over sequences of softplus(beta * (log p - log p_ref))`` (paper Eq. 4), a scalar.

    ``log p`` is the SUM over the label tokens of a sequence, as in the paper, the public GRU code and the unified
    framework (MUSE's code feeds raw logits in, which is another objective). At the reference the loss is
    ``2 ln 2 / beta`` and its gradient that of the mean sequence log-probability.
    """
    # -logsigmoid(-x) is softplus(x) without the switch to x that torch's softplus makes beyond 20.
    return -F.logsigmoid(-beta * forget.log_ratios).mean() * (2.0 / beta)


@register("npo", title="NPO")
@dataclass(frozen=True)
class NPO(Method):
    """Negative preference optimization, :func:`npo_loss` alone. The unified framework's default adds the retain loss
    (that is ``npo_gd``)."""

    reference_log_probs: ClassVar[tuple[str, ...]] = ("forget",)
    beta: float = hyper(0.1, "inverse temperature; towards 0 it becomes GA on sequence sums", above=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return npo_loss(batch.forget, self.beta)
