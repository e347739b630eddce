"""IDK: the questions to forget, answered "I don't know"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, register


@register("idk", title="IDK")
@dataclass(frozen=True)
class IDK(Method):
    """Ordinary training on the idk rows and the retain rows together: ONE mean over all their label tokens.

    ``(N_idk * CE_idk + N_r * CE_r) / (N_idk + N_r)``, N the number of label tokens: TOFU's "preference optimization",
    where the two are concatenated. The public GRU code swaps the answers in for the loss named exactly "idk" only, so
    that its IDK with GRU learns the true answers; here both learn the idk answers. Not in the paper's tables.
    """

    parts: ClassVar[tuple[str, ...]] = ("idk", "retain")
    weighs_by_batch: ClassVar[bool] = True

    def forget_loss(self, batch: Batch) -> Tensor:
        return (1.0 - self.retain_nll_weight(batch)) * batch.idk.mean_nll

    def retain_nll_weight(self, batch: Batch) -> float:
        idk, retain = batch.num_labels("idk"), batch.num_labels("retain")
        return retain / (idk + retain)
