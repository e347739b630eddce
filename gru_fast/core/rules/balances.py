"""Rules that weigh the two gradients against each other: NGDiff, MGDA, CAGrad, HAMU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gru_fast.core.rules.base import Combination, Dots, Rule, option, weighted, without_one

COLLINEAR = 2.0**-40  # |p|^2 below this share of |r|^2 is rounding noise


@dataclass(frozen=True)
class NGDiff(Rule):
    """Normalised gradient difference (arXiv 2410.22086): ``g / |g| + r / |r|``.

    Both losses fall as fast for the length of their gradients: ``<., g> >= 0`` and ``<., r> >= 0``, always. Its step
    size, from further forward passes, is not part of it.
    """

    name = "ngdiff"
    title = "NGDiff"

    def combine(self, s: Dots) -> Combination:
        return weighted(1.0 / math.sqrt(s.u) if s.u > 0.0 else 1.0, 1.0 / math.sqrt(s.m) if s.m > 0.0 else 0.0, s)


@dataclass(frozen=True)
class MGDA(Rule):
    """Multiple gradient descent (Desideri 2012): the shortest vector between g and r.

    ``t g + (1 - t) r`` with ``t = (m - d) / |g - r|^2`` brought into [0, 1]. Promise: ``<., g>`` and ``<., r>`` are at
    least its own square, and it is no longer than the shorter of the two.
    """

    name = "mgda"
    title = "MGDA"

    def combine(self, s: Dots) -> Combination:
        if not s.m > 0.0:
            return weighted(1.0, 0.0, s)
        apart = s.u + s.m - 2.0 * s.d  # |g - r|^2
        t = (s.m - s.d) / apart if apart > 0.0 else 0.5
        share = min(max(t, 0.0), 1.0)
        return weighted(share, 1.0 - share, s)


@dataclass(frozen=True)
class CAGrad(Rule):
    """Conflict-averse gradient descent (Liu et al. 2021, arXiv 2110.14048), of two tasks.

    With ``g0 = (g + r) / 2`` and ``y = t g + (1 - t) r``: ``g0 + (c |g0| / |y|) y``, where t in [0, 1] minimises
    ``<y, g0> + c |g0| |y|``. Of all vectors within c |g0| of g0 it is the one by which the loss that falls least falls
    most. It ends within that distance of the mean; for c >= 1 neither loss rises. TorchJD has no default for c.
    """

    name = "cagrad"
    title = "CAGrad"

    c: float = option(0.5, "how far it may go from the mean of the two, in units of the mean's length", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        if not s.m > 0.0:
            return weighted(1.0, 0.0, s)
        radius = self.c * math.sqrt(max(0.25 * (s.u + s.m + 2.0 * s.d), 0.0))
        t = _lowest(s, radius)
        norm = math.sqrt(_between_sq(s, t))
        q = radius / norm if norm > 0.0 else 0.0
        return weighted(0.5 + q * t, 0.5 + q * (1.0 - t), s)


def _lowest(s: Dots, radius: float) -> float:
    """The t in [0, 1] that minimises ``<y, g0> + radius |y|``, which is convex in it."""
    if _slope(s, radius, 0.0) >= 0.0:
        return 0.0
    if _slope(s, radius, 1.0) <= 0.0:
        return 1.0
    low, high, t = 0.0, 1.0, 0.5
    for _ in range(60):
        t = 0.5 * (low + high)
        if _slope(s, radius, t) < 0.0:
            low = t
        else:
            high = t
    return t


def _slope(s: Dots, radius: float, t: float) -> float:
    norm = math.sqrt(_between_sq(s, t))
    along = t * (s.u - s.d) + (1.0 - t) * (s.d - s.m)  # <y, g - r>
    return 0.5 * (s.u - s.m) + (radius * (along / norm) if norm > 0.0 else 0.0)


def _between_sq(s: Dots, t: float) -> float:
    """``|t g + (1 - t) r|^2``"""
    return max(t * t * s.u + (1.0 - t) * (1.0 - t) * s.m + 2.0 * (t * (1.0 - t) * s.d), 0.0)


@dataclass(frozen=True)
class HAMU(Rule):
    """Hardness-aware unlearning (arXiv 2606.02119): the best step for one loss that does enough for the other.

    Form q: of all steps no longer than R that raise the forget loss by Q to first order, the one that lowers the
    retain loss most. With ``q = Q / lr``, ``R`` in units of lr, ``p = r - (d / u) g``, ``S^2 = R^2 - q^2 / u``::

        q > R |g|          cannot be: (q / u) g, as far as was asked for
        d R >= q |r|       r alone does enough: (R / |r|) r
        |p| = 0            collinear: (q / u) g
        otherwise          (q / u) g + (S / |p|) p

    With q = 0, the default, form q asks for no forgetting at all: it descends r alone, turned only so far that the
    forget loss does not fall. Give a q to unlearn.

    Form u changes the roles of g and r: the retain loss falls by Q, and forgetting is what is left. Promise where it
    can be: ``<., g> >= q`` (u: ``<., r> >= q``) and ``|.| <= R``. The public code (aoi3142/HAMU) is per tensor; its
    form for all tensors divides p by its norm in each, so that the step is longer than R by the root of their number.
    Its parameters are those of the step that is made; here lr is what they are divided by.
    """

    name = "hamu"
    title = "HAMU"

    form: str = option("q", "q: forget at least Q; u: keep at least Q", choices=("q", "u"))
    q: float = option(
        0.0,
        "Q over the learning rate: change of that loss in a step of rate 1; form q forgets by it",
        at_least=0.0,
    )
    radius: float | None = option(
        None, "longest result (the step over the learning rate); none: the length of r, in form u of g", at_least=0.0
    )

    def combine(self, s: Dots) -> Combination:
        if not (s.m > 0.0 and s.u > 0.0):
            return without_one(1.0, 1.0, s)
        if self.form == "q":
            alpha, beta = self._coefficients(s.d, s.m, s.u)
        else:
            beta, alpha = self._coefficients(s.d, s.u, s.m)
        return weighted(alpha, beta, s)

    def _coefficients(self, d: float, m: float, u: float) -> tuple[float, float]:
        """Of the vector along which enough must happen, and of the other one."""
        norm_r = math.sqrt(m)
        reach = norm_r if self.radius is None else self.radius
        alpha = self.q / u
        if self.q > reach * math.sqrt(u):
            return alpha, 0.0
        if d * reach >= self.q * norm_r:
            return 0.0, reach / norm_r
        rest_sq = m - d * (d / u)  # |p|^2
        if rest_sq <= COLLINEAR * m:
            return alpha, 0.0
        beta = math.sqrt(max(reach * reach - self.q * (self.q / u), 0.0)) / math.sqrt(rest_sq)
        return alpha - beta * (d / u), beta
