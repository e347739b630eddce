"""DPO: "I don't know" preferred to the true answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


def dpo_loss(batch: Batch, beta: float) -> Tensor:
    """``-(2 / beta) * mean log sigmoid(beta * (R_idk - R_forget))``, a scalar.

    ``R = log p - log p_ref`` of a whole answer (a sum over its label tokens), of the idk answer and of the true answer
    to the same question.
    """
    margin = batch.idk.log_ratios - batch.forget.log_ratios
    return -F.logsigmoid(beta * margin).mean() * (2.0 / beta)


@register("dpo", title="DPO")
@dataclass(frozen=True)
class DPO(Method):
    """:func:`dpo_loss` ``+ retain_weight * CE_r``.

    Scale and retain term are the unified framework's. TOFU's own form, with factor 1 and no retain term, does not run
    as published (for that objective: ``retain_weight=0``, the loss times ``beta / 2``). Not in the paper's tables.

    AltPO (arXiv 2409.13474) is this objective with plausible other answers, written by the model itself, in place of
    "I don't know"; beta 0.1, several answers a question, drawn anew in every epoch (the unified framework's code makes
    a row of each instead, so that an epoch is as many times longer). ``gru-fast write-alternates`` writes them,
    ``--alternates`` gives them.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "idk", "retain")
    reference_log_probs: ClassVar[tuple[str, ...]] = ("forget", "idk")
    beta: float = hyper(0.1, "inverse temperature", above=0.0)
    retain_weight: float = hyper(1.0, "weight of the retain loss", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return dpo_loss(batch, self.beta)

    def retain_nll_weight(self, batch: Batch) -> float:
        return self.retain_weight
