"""Gradient direction rectification (GDR, Lin et al. 2024), a step to compare GRU's with."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gru_fast.core.checks import check_tau
from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import measure
from gru_fast.core.result import Rectification
from gru_fast.core.sharded.shards import local

_DEGENERATE = 2.0**-40  # a projected gradient below 2**-20 of its length is rounding noise, as in GRU's step


class DirectionRectification(Rectification):
    """The statistics of one :func:`gdr_`: those of a :class:`~gru_fast.Rectification`, with r for e."""

    def __init__(self, stats: Tensor, tau: float | None) -> None:
        super().__init__(stats)
        self._tau = math.inf if tau is None else tau

    @property
    def alpha(self) -> float:
        """``g <- alpha * g + beta * r`` is what the step did."""
        if self.nonfinite:
            return 1.0
        return (1.0 - self.dot / self._values["grad_norm_sq"] if self.conflict else 1.0) * self._scale

    @property
    def beta(self) -> float:
        """See :attr:`alpha`."""
        if self.nonfinite:
            return 0.0
        return (1.0 - self.dot / self._values["ema_norm_sq"] if self.conflict else 1.0) * self._scale

    @property
    def norm_after(self) -> float:
        """|g| after."""
        return self.norm_before if self.nonfinite else math.sqrt(self._sum_norm_sq) * self._scale

    @property
    def cos_after(self) -> float:
        """cos(g, r) after: never below 0."""
        if self.nonfinite or self.degenerate or self._sum_norm_sq == 0.0:
            return math.nan
        along = self._left * self._values["ema_norm_sq"] if self.conflict else self.dot + self._values["ema_norm_sq"]
        norms = math.sqrt(self._sum_norm_sq) * self.norm_ema
        return min(1.0, along / norms) if norms > 0.0 else math.nan

    @property
    def clipped(self) -> bool:
        """The sum of both was longer than tau."""
        return not self.nonfinite and math.sqrt(self._sum_norm_sq) > self._tau

    @property
    def degenerate(self) -> bool:
        """cos(g, r) = -1: nothing was left of either, and g is 0 now. Draw another batch."""
        return not self.nonfinite and self.conflict and self._left <= _DEGENERATE

    @property
    def _left(self) -> float:
        """What the projection leaves of the square of either norm, as a share: 1 - cos(g, r)^2."""
        return max(0.0, 1.0 - self.cos * self.cos)

    @property
    def _sum_norm_sq(self) -> float:
        """|g' + r'|^2. The projected two are as far apart as g and r were close: <g', r'> is -<g, r> (1 - cos^2)."""
        both = self._values["grad_norm_sq"] + self._values["ema_norm_sq"]
        return self._left * (both - 2.0 * self.dot) if self.conflict else both + 2.0 * self.dot

    @property
    def _scale(self) -> float:
        if self.degenerate:
            return 0.0
        return self._tau / math.sqrt(self._sum_norm_sq) if self.clipped else 1.0


@torch.no_grad()
def gdr_(params: Iterable[Tensor], ema: RetainEMA, tau: float | None = None) -> DirectionRectification:
    """``g <- g' + r'``, where each of g and r, if they conflict, has lost its component along the other.

    ``g' = g - (<g, r> / <r, r>) * r`` and ``r' = r - (<g, r> / <g, g>) * g`` if ``<g, r> < 0``, else g and r
    themselves; then clipped to norm ``tau``. So neither the unlearning nor the retain loss rises to first order. Unlike
    GRU it takes r itself, not its moving average, and steps along it.

    The published text projects "a gradient onto the orthonormal plane of the conflicting gradient". Its code departs
    from that in ways that are not taken over: it decides tensor by tensor, it takes the second projection against the
    already projected first gradient, and it weights the two (its "magnitude adjustment") by a sigmoid of the retain
    loss about 0.02, which for a language model is the retain gradient alone. Here both count the same, over all
    parameters as one vector, as GRU's step does.

    Args:
        params: the parameters, with g in ``.grad``, modified in place; where it is None it becomes r'.
        ema: follows them, and has this step's retain gradients (``collect()``, or ``stream(gamma=1.0)``). Its e is r
            afterwards.
        tau: largest norm of the result, above 0; None: no clipping.

    Returns:
        Statistics. With NaN or Inf in g or r, g is untouched.
    """
    check_tau(tau)
    params = list(params)
    step = DirectionRectification(measure(params, ema, 1.0).stats, tau)  # with gamma 1, e is r
    if step.nonfinite:
        return step
    alpha, beta = step.alpha, step.beta
    for param in ema.params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    grads = [local(param.grad) for param in ema.params if param.grad is not None]  # of shards the part that lies here
    if grads:
        torch._foreach_mul_(grads, alpha)
        torch._foreach_add_(grads, [local(e) for e in ema.tensors], alpha=beta)
    return step
