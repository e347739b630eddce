"""WGA, held near the model before unlearning on the data to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.wga import wga_loss


@register("wga_kl", title="WGA+KL")
@dataclass(frozen=True)
class WGAKL(Method):
    """``WGA + kl_weight * KL_r``: KL(p_ref, p) on the retain rows, see
    :func:`~gru_fast.unlearn.references.kl_divergence`.

    Not in the paper's tables; the unified framework's WGA with ``retain_loss_type=KL``.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reference_model: ClassVar[bool] = True
    beta: float = hyper(1.0, "power of the token probability in its weight; 0 is GA+KL", at_least=0.0)
    kl_weight: float = hyper(1.0, "weight of the KL divergence on the retain data", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return wga_loss(batch.forget, self.beta)

    def retain_loss(self, batch: Batch) -> Tensor:
        return self.kl_weight * batch.retain_kl
