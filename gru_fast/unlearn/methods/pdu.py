"""PDU: logits of what is to be forgotten made flat, under a bound on the retain loss that a dual variable enforces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("pdu", title="PDU")
@dataclass(frozen=True)
class PDU(Method):
    """``forget_weight * mean over label tokens of (max z - mean z)^2 + lambda * CE_r``, subject to CE_r <= eps.

    z are the logits over the vocabulary where a label token is predicted: flat ones are a uniform distribution. lambda,
    the dual variable, begins at ``retain_weight``; from epoch ``warm_up_epochs`` on, after every step,
    ``lambda <- max(0, lambda + dual_step * (CE_r - eps))``.

    Paper: arXiv 2506.05314 ("constrained entropic unlearning"). The defaults are those of its authors' script for TOFU
    (10 to 30 epochs). eps must suit the model: somewhat above its retain loss before unlearning. The unified framework
    takes the logits at the label tokens' own places, where the next token is predicted, and steps lambda after every
    micro-batch; here the logits are those that predict the label tokens, and lambda steps once a step, by the mean
    retain loss of its micro-batches in all processes.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    logits: ClassVar[bool] = True
    has_dual: ClassVar[bool] = True
    forget_weight: float = hyper(1.0, "weight of the forget loss", above=0.0)
    retain_weight: float = hyper(
        100.0, "lambda at the beginning: of the size of the forget loss, which is large", at_least=0.0
    )
    eps: float = hyper(0.3, "largest retain loss: somewhat above that of the model before unlearning", at_least=0.0)
    dual_step: float = hyper(
        5.0, "by how much lambda rises for each nat of retain loss above eps; 0: it stays", at_least=0.0
    )
    warm_up_epochs: int = hyper(5, "epochs at the beginning in which lambda stays", at_least=0)

    def forget_loss(self, batch: Batch) -> Tensor:
        logits = batch.label_logits("forget").logits
        margin = logits.amax(dim=-1) - logits.mean(dim=-1)
        return self.forget_weight * margin.square().mean()

    def retain_nll_weight(self, batch: Batch) -> float:
        return batch.dual

    def first_dual(self) -> float:
        return self.retain_weight

    def next_dual(self, dual: float, retain_nll: float, epoch: int) -> float:
        if epoch < self.warm_up_epochs:
            return dual
        return max(0.0, dual + self.dual_step * (retain_nll - self.eps))
