"""Gradient direction rectification (GDR, Lin et al. 2024), a step to compare GRU's with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import rectify_
from gru_fast.core.result import Rectification
from gru_fast.core.retain_gradient import RetainGradient

DirectionRectification = Rectification  # its name until 0.1


def gdr_(params: Iterable[Tensor], ema: RetainEMA | RetainGradient, tau: float | None = None) -> Rectification:
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
        ema: follows them, and has this step's retain gradients: a :class:`~gru_fast.RetainGradient`, or a RetainEMA
            (``collect()``, or ``stream(gamma=1.0)``), whose e is r afterwards, at 36 bytes a parameter in place of
            20 (float32).
        tau: largest norm of the result, above 0; None: no clipping.

    Returns:
        Statistics. With NaN or Inf in g or r, g is untouched.
    """
    return rectify_(params, ema, 1.0, tau, rule="gdr")  # with gamma 1, e is r
