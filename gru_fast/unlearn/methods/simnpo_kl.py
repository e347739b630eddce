"""SimNPO, held near the model before unlearning on the data to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register
from gru_fast.unlearn.methods.simnpo import simnpo_loss


@register("simnpo_kl", title="SimNPO+KL")
@dataclass(frozen=True)
class SimNPOKL(Method):
    """``forget_weight * SimNPO + kl_weight * KL_r``: KL(p_ref, p) on the retain rows, see
    :func:`~gru_fast.unlearn.references.kl_divergence`.

    Not in the paper's tables; the unified framework's SimNPO with ``retain_loss_type=KL``. It needs the reference model
    that SimNPO itself does without. The other defaults are those of ``simnpo_gd``.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reference_model: ClassVar[bool] = True
    beta: float = hyper(4.5, "inverse temperature, of the mean NLL per token", above=0.0)
    delta: float = hyper(0.0, "reward margin: mean NLL per token at which SimNPO is 2 ln 2 / beta")
    forget_weight: float = hyper(0.125, "weight of SimNPO", above=0.0)
    kl_weight: float = hyper(1.0, "weight of the KL divergence on the retain data", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return self.forget_weight * simnpo_loss(batch.forget, self.beta, self.delta)

    def retain_loss(self, batch: Batch) -> Tensor:
        return self.kl_weight * batch.retain_kl
