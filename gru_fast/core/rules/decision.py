"""What is done with what a rule says: clipping to tau, and where digits have cancelled. The same for all of them.

csrc/rules.h is the same for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gru_fast.core.rules.base import CANCELLATION, Dots, Rule
from gru_fast.core.rules.several import SetDots, SeveralRule
from gru_fast.core.stats import ALPHA, BETA, DOT, EMA_NORM_SQ, GRAD_NORM_SQ, RETAIN_NONFINITE, VETOED, WRITTEN

DEGENERATE = 2.0**-20  # a result below this share of its terms is rounding noise: cos(g, e) = -1
_CLIP_SLACK = 5e-4  # 16-bit rounding may exceed tau by this before g is scaled once more


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


def decide(rule: Rule, stats: Sequence[float], tau: float) -> Decision:
    """The rule, clipped to ``tau`` (paper Eq. 10). ``stats``: the sums at least. Inf: no clipping."""
    d, m, u = stats[DOT], stats[EMA_NORM_SQ], stats[GRAD_NORM_SQ]
    out = Decision(norm_sq=u)
    out.nonfinite = not (math.isfinite(d) and math.isfinite(m) and math.isfinite(u))
    if out.nonfinite or stats[VETOED] > 0.0:
        return out
    out.conflict = d < 0.0 < m
    if stats[RETAIN_NONFINITE] > 0.0 and rule.adds_x:
        return out
    wanted = rule.combine(Dots(d, m, u, out.conflict))
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


@dataclass
class GroupDecision:
    """What apply does with one group of parameters."""

    alpha: float = 1.0
    beta: float = 0.0
    conflict: bool = False


def decide_groups(
    rule: Rule, stats: Sequence[float], groups: Iterable[Sequence[float]], tau: float
) -> tuple[Decision, list[GroupDecision]]:
    """The rule for each group of parameters; NaN, clipping and what is left of the whole go by all of them.

    ``groups``: d, m, u of each. alpha and beta of the first result are NaN where anything is written: each has its own.
    """
    d, m, u = stats[DOT], stats[EMA_NORM_SQ], stats[GRAD_NORM_SQ]
    out = Decision(norm_sq=u, nonfinite=not (math.isfinite(d) and math.isfinite(m) and math.isfinite(u)))
    stays = out.nonfinite or stats[VETOED] > 0.0 or (stats[RETAIN_NONFINITE] > 0.0 and rule.adds_x)
    found, norm_sq = [], 0.0
    for d_t, m_t, u_t, *_ in groups:
        group = GroupDecision(conflict=d_t < 0.0 < m_t and not out.nonfinite and not stats[VETOED] > 0.0)
        out.conflict = out.conflict or group.conflict
        found.append(group)
        if not stays:
            wanted = rule.combine(Dots(d_t, m_t, u_t, group.conflict))
            group.alpha, group.beta = wanted.alpha, wanted.beta
            norm_sq += wanted.norm_sq
            out.size_sq += wanted.size_sq
    if stays:
        return out, found
    out.norm_sq = norm_sq
    out.measure = norm_sq < CANCELLATION * out.size_sq or (out.size_sq == 0.0 and u > 0.0)
    norm = math.sqrt(norm_sq)
    if not out.measure and norm > tau:
        out.clipped, out.norm_sq = True, tau * tau
    factor = tau / norm if out.clipped else 1.0
    for group in found:
        group.alpha *= factor
        group.beta *= factor
        if group.alpha != 1.0 or group.beta != 0.0:
            out.alpha = out.beta = math.nan
    return out, found


def decide_sets(rule: SeveralRule, dots: SetDots, stats: Sequence[float], tau: float) -> tuple[Decision, list[float]]:
    """The rule beside several vectors: what apply does, and beta of each; the Decision's own is the largest of them."""
    betas = [0.0] * len(dots.h)
    out = Decision(norm_sq=dots.u, size_sq=dots.u)
    out.nonfinite = not all(map(math.isfinite, (dots.u, *dots.h, *(x for row in dots.gram for x in row))))
    if out.nonfinite or stats[VETOED] > 0.0:
        return out, betas
    out.conflict = dots.conflict
    if stats[RETAIN_NONFINITE] > 0.0 and rule.adds_x:
        return out, betas
    wanted = rule.spread(dots)
    betas = wanted.betas
    out.beta = max(betas, key=abs)
    out.norm_sq, out.size_sq, out.measure = wanted.norm_sq, wanted.size_sq, wanted.cancels
    norm = math.sqrt(out.norm_sq)
    if not out.measure and norm > tau:
        factor = tau / norm
        out.clipped, out.norm_sq = True, tau * tau
        out.alpha, out.beta, betas = factor, out.beta * factor, [beta * factor for beta in betas]
    return out, betas


def settle_elements(rule: Rule, stats: Sequence[float], tau: float) -> list[float]:
    """The same of an element-wise rule, once its pass has written or was shut; alpha and beta are what it told."""
    d, m, u = stats[DOT], stats[EMA_NORM_SQ], stats[GRAD_NORM_SQ]
    nonfinite, vetoed = not all(map(math.isfinite, (d, m, u))), stats[VETOED] > 0.0
    shut = is_shut(rule, stats)
    written = math.sqrt(stats[WRITTEN])
    clipped = not shut and written > tau * (1.0 + _CLIP_SLACK)
    rescale = tau / written if clipped else 1.0
    out_norm_sq = u if shut else stats[WRITTEN] * rescale * rescale
    conflict = not nonfinite and not vetoed and d < 0.0 < m
    flags = map(float, (conflict, clipped, not shut and u > 0.0 and written == 0.0, nonfinite))
    return [stats[ALPHA], stats[BETA], rescale, out_norm_sq, *flags]


def is_shut(rule: Rule, stats: Sequence[float]) -> bool:
    """Whether an element-wise rule may write nothing after a reduce: NaN or Inf, in what is needed."""
    finite = all(map(math.isfinite, (stats[DOT], stats[EMA_NORM_SQ], stats[GRAD_NORM_SQ])))
    return not finite or stats[VETOED] > 0.0 or (stats[RETAIN_NONFINITE] > 0.0 and rule.adds_x)


def settle(rule: Rule, stats: Sequence[float], tau: float) -> list[float]:
    """:func:`settled` of a step over all parameters as one vector."""
    if rule.elementwise:
        return settle_elements(rule, stats, tau)
    return settled(decide(rule, stats, tau), stats, tau)


def settled(decision: Decision, stats: Sequence[float], tau: float) -> list[float]:
    """The outcome of a step, ``stats[ALPHA : GRAD_NONFINITE + 1]``, once apply has written or had nothing to write."""
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
