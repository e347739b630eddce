"""UNDIAL: the model learns from itself, with what it is to forget made less likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


def undial_loss(batch: Batch, beta: float) -> Tensor:
    """``mean over label tokens of CE(softmax(z_ref - beta * onehot(y)), p)``, a scalar, in nats.

    y is the true token, z_ref are the logits of the model before unlearning. The target is fixed: unlike ascent it
    cannot run away.
    """
    reference = batch.reference_label_logits("forget")
    here = reference.labels[:, None]
    lowered = reference.logits.scatter(-1, here, reference.logits.gather(-1, here) - beta)
    return F.cross_entropy(batch.label_logits("forget").logits, lowered.softmax(dim=-1))


@register("undial", title="UNDIAL")
@dataclass(frozen=True)
class UNDIAL(Method):
    """Self-distillation with adjusted logits, :func:`undial_loss` alone (``undial_gd`` adds the retain loss).

    Paper: arXiv 2402.10052, which keeps no retain data and takes beta 3, 10 or 30; 10 is the unified framework's
    configuration, whose class has 1. There the mean is over all positions, prompt and padding too, where the token
    number V - 100 is lowered in place of a label (-100 as an index); here, as in the paper, over the label tokens. So
    at the same rate a step here is larger by the ratio of the two counts.
    """

    logits: ClassVar[bool] = True
    reference_model: ClassVar[bool] = True
    beta: float = hyper(10.0, "how much the teacher's logit of the true token is lowered", at_least=0.0)

    def forget_loss(self, batch: Batch) -> Tensor:
        return undial_loss(batch, self.beta)
