"""Gradient ascent, held near the model before unlearning on the data to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("ga_kl", title="GA+KL")
@dataclass(frozen=True)
class GAKL(Method):
    """``-CE_f + kl_weight * KL_r``: KL(p_ref, p) on the retain rows, see
    :func:`~gru_fast.unlearn.references.kl_divergence`.

    Not in the paper's tables. The default weight 1 is TOFU's, whose baseline this is; the public GRU code has 5.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reference_model: ClassVar[bool] = True
    kl_weight: float = hyper(1.0, "weight of the KL divergence on the retain data", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return -batch.forget.mean_nll

    def retain_loss(self, batch: Batch) -> Tensor:
        return self.kl_weight * batch.retain_kl
