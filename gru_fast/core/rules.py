"""Rules: from the sums of a step to its coefficients. The only code that decides; csrc/rules.h is the same for kernels.

With ``d = <g, e>``, ``m = |e|^2``, ``u = |g|^2`` over all parameters as one vector, a rule names alpha and beta of::

    g <- alpha * g + beta * e

A rule never touches gradient memory, and the passes know no rule. Clipping to tau, and what is done where digits have
cancelled, is the same for all of them. A new rule is a function and a line in ``RULES`` here, and the same in
csrc/rules.h, which a test holds against this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gru_fast.core.stats import DOT, EMA_NORM_SQ, GRAD_NORM_SQ, RETAIN_NONFINITE, VETOED, WRITTEN

_CANCELLATION = 1.0 / 64  # below this share of its terms a norm is measured, not computed
DEGENERATE = 2.0**-20  # a result below this share of its terms is rounding noise: cos(g, e) = -1
_CLIP_SLACK = 5e-4  # 16-bit rounding may exceed tau by this before g is scaled once more


@dataclass(frozen=True)
class Combination:
    """What a rule says, before clipping.

    Args:
        alpha, beta: of ``g <- alpha * g + beta * e``.
        norm_sq: of the result, as far as the sums tell.
        size_sq: of the terms that may cancel in it, which it is held against.
        cancels: whether norm_sq has lost too many digits to clip by.
    """

    alpha: float
    beta: float
    norm_sq: float
    size_sq: float
    cancels: bool = False


def gru(d: float, m: float, u: float, conflict: bool) -> Combination:
    """Gradient rectified unlearning (arXiv 2503.09117, Eq. 8): without the part of g that would raise the retain loss.

    ``g - (d / m) * e if d < 0 else g``. Promise: ``<g, e> >= 0`` afterwards; nothing is changed without a conflict.

    >>> gru(-1.0, 4.0, 2.0, True)
    Combination(alpha=1.0, beta=0.25, norm_sq=1.75, size_sq=2.0, cancels=False)
    """
    if not conflict:
        return Combination(1.0, 0.0, u, u)
    residual = u - d * (d / m)
    return Combination(1.0, -d / m, max(residual, 0.0), u, residual < _CANCELLATION * u)


def gdr(d: float, m: float, u: float, conflict: bool) -> Combination:
    """Gradient direction rectification (Lin et al. 2024): g + e; of two that conflict, each without the other's part.

    ``g' + e'`` with ``g' = g - (d / m) e`` and ``e' = e - (d / u) g`` if ``d < 0``, else g and e themselves. Promise:
    neither ``<g, .>`` nor ``<e, .>`` of the result is negative. See :func:`gru_fast.unlearn.gdr.gdr_`.

    >>> gdr(-2.0, 4.0, 5.0, True).alpha, gdr(-2.0, 4.0, 5.0, True).beta
    (1.4, 1.5)
    """
    if not conflict:
        return Combination(1.0, 1.0 if m > 0.0 else 0.0, u + m + 2.0 * d, u + m)
    left = 1.0 - (d / u) * (d / m)  # 1 - cos^2
    alpha, beta = 1.0 - d / u, 1.0 - d / m
    # The projected two are as far apart as g and e were close: their dot product is -d (1 - cos^2).
    norm_sq = left * (u + m - 2.0 * d) if left > 0.0 else 0.0
    return Combination(alpha, beta, norm_sq, alpha * alpha * u + beta * beta * m, left < _CANCELLATION)


RULES: dict[str, Callable[[float, float, float, bool], Combination]] = {"gru": gru, "gdr": gdr}
NEED_ALL_OF_R = frozenset({"gdr"})  # give the step up where NaN or Inf kept some of r out of e


def check_rule(rule: str) -> str:
    """``rule``, or a ValueError that names those there are."""
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    return rule


@dataclass
class Decision:
    """What apply does: ``g <- alpha * g + beta * e``, and what is known of the norm afterwards."""

    alpha: float = 1.0
    beta: float = 0.0
    norm_sq: float = 0.0
    size_sq: float = 0.0
    conflict: bool = False
    clipped: bool = False
    measure: bool = False  # norm_sq has cancelled: it is measured by apply, and clipped by then
    nonfinite: bool = False

    @property
    def writes(self) -> bool:
        """Whether g changes."""
        return self.alpha != 1.0 or self.beta != 0.0


def decide(rule: str, stats: Sequence[float], tau: float) -> Decision:
    """The rule, clipped to ``tau`` (paper Eq. 10). ``stats``: the sums at least. Inf: no clipping."""
    d, m, u = stats[DOT], stats[EMA_NORM_SQ], stats[GRAD_NORM_SQ]
    out = Decision(norm_sq=u)
    out.nonfinite = not (math.isfinite(d) and math.isfinite(m) and math.isfinite(u))
    if out.nonfinite or stats[VETOED] > 0.0:
        return out
    out.conflict = d < 0.0 < m
    if stats[RETAIN_NONFINITE] > 0.0 and rule in NEED_ALL_OF_R:
        return out
    wanted = RULES[rule](d, m, u, out.conflict)
    out.alpha, out.beta = wanted.alpha, wanted.beta
    out.norm_sq, out.size_sq, out.measure = wanted.norm_sq, wanted.size_sq, wanted.cancels
    norm = math.sqrt(out.norm_sq)
    if not out.measure and norm > tau:
        factor = tau / norm
        out.clipped = True
        out.alpha *= factor
        out.beta *= factor
        out.norm_sq = tau * tau
    return out


def settle(rule: str, stats: Sequence[float], tau: float) -> list[float]:
    """The outcome of a step, ``stats[ALPHA : GRAD_NONFINITE + 1]``, once apply has written or had nothing to write."""
    decision = decide(rule, stats, tau)
    rescale, out_norm_sq, clipped, degenerate = 1.0, decision.norm_sq, decision.clipped, False
    if decision.writes:
        out_norm_sq = stats[WRITTEN]
        written = math.sqrt(out_norm_sq)
        if decision.measure and written <= DEGENERATE * math.sqrt(decision.size_sq):
            rescale, degenerate = 0.0, True
        elif written > tau * (1.0 if decision.measure else 1.0 + _CLIP_SLACK):
            rescale, clipped = tau / written, True
        out_norm_sq *= rescale**2
    flags = map(float, (decision.conflict, clipped, degenerate, decision.nonfinite))
    return [decision.alpha, decision.beta, rescale, out_norm_sq, *flags]
