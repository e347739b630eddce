"""Gradient ascent: the forget data's likelihood, driven down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, register


@register("ga", title="GA")
@dataclass(frozen=True)
class GA(Method):
    """Gradient ascent (paper Eq. 1): ``-CE_f``.

    The paper prints a mean over sequences of the sequence sum; the public code, TOFU and the unified framework take
    the token mean, the scale on which tau was tuned. So does this.
    """

    def forget_loss(self, batch: Batch) -> Tensor:
        return -batch.forget.mean_nll
