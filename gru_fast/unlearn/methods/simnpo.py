"""SimNPO: NPO without a reference model, on the mean instead of the sum over a sequence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gru_fast.models.scores import Scores
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register


def simnpo_loss(forget: Scores, beta: float, delta: float) -> Tensor:
    """``-(2 / beta) * mean over sequences of log sigmoid(beta * (NLL_i / len_i - delta))``, a scalar.

    ``len_i`` is the number of label tokens of a sequence, so that long answers weigh no more than short ones.
    """
    # A sequence without labels has no mean; 0 / 1 gives it a constant term and no gradient instead of NaN.
    mean_nll = -forget.sequence_log_probs / forget.counts.clamp(min=1)
    return -F.logsigmoid(beta * (mean_nll - delta)).mean() * (2.0 / beta)


@register("simnpo", title="SimNPO")
@dataclass(frozen=True)
class SimNPO(Method):
    """SimNPO, :func:`simnpo_loss` alone.

    The paper gives no beta. The default 4.5 is that of the method's authors (TOFU forget10; 2.5 for forget05) and of
    the unified framework; the public GRU code feeds it the option it shares with NPO (0.1). delta is 0 everywhere (the
    public GRU code calls it gamma, which has nothing to do with the gamma of GRU).
    """

    beta: float = hyper(4.5, "inverse temperature, of the mean NLL per token", above=0.0)
    delta: float = hyper(0.0, "reward margin: mean NLL per token at which the loss is 2 ln 2 / beta")

    def forget_loss(self, batch: Batch) -> Tensor:
        return simnpo_loss(batch.forget, self.beta, self.delta)
