"""CE-U: the model learns its own distribution without the true token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


@register("ceu", title="CE-U")
@dataclass(frozen=True)
class CEU(Method):
    """``mean over label tokens of CE(q, p)``, q = p without the true token, of which no gradient is taken.

    ``q_j = p_j / (1 - p_y)`` for j != y and ``q_y = 0``: cross entropy unlearning. Its gradient by the logits is p - q,
    at most 2 in sum, also for a model that is certain of y.

    Paper: arXiv 2503.01224, without retain data. In a footnote it leaves the first label tokens of an answer alone: one
    in the unified framework, as here. A batch of answers that are no longer than that has loss 0 here, NaN there.
    """

    logits: ClassVar[bool] = True
    skip: int = hyper(1, "label tokens at the beginning of each answer that are left alone", at_least=0)

    def forget_loss(self, batch: Batch) -> Tensor:
        found = batch.label_logits("forget")
        counted = found.places >= self.skip
        logits, labels = found.logits[counted], found.labels[counted]
        without = logits.detach().scatter(-1, labels[:, None], -torch.inf)
        return F.cross_entropy(logits, without.softmax(dim=-1), reduction="sum") / max(1, len(labels))
