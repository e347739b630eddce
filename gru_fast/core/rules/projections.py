"""Rules that take one vector's component along the other away: GRU, A-GEM, PCGrad, GDR, UPGrad, BLUR, GU."""

from __future__ import annotations

from dataclasses import dataclass

from gru_fast.core.rules.base import CANCELLATION, Combination, Dots, Rule, option, weighted, without_one


@dataclass(frozen=True)
class GRU(Rule):
    """Gradient rectified unlearning (arXiv 2503.09117, Eq. 8): without the part of g that would raise the retain loss.

    ``g - (d / m) * e if d < 0 else g``. Promise: ``<g, e> >= 0`` afterwards; nothing is changed without a conflict.
    The public code (tmlr-group/GRU) does the same in float64 on the CPU.

    >>> GRU().combine(Dots(-1.0, 4.0, 2.0, True))
    Combination(alpha=1.0, beta=0.25, norm_sq=1.75, size_sq=2.0, cancels=False)
    """

    name = "gru"
    title = "GRU"
    against = "ema"
    adds_x = False

    def combine(self, s: Dots) -> Combination:
        if not s.conflict:
            return Combination(1.0, 0.0, s.u, s.u)
        residual = s.u - s.d * (s.d / s.m)
        return Combination(1.0, -s.d / s.m, max(residual, 0.0), s.u, residual < CANCELLATION * s.u)


@dataclass(frozen=True)
class AGEM(Rule):
    """Averaged gradient episodic memory (Chaudhry et al. 2019): GRU's projection, off r of a batch to keep.

    ``g - (d / m) * r if d < 0 else g``. Promise: ``<g, r> >= 0`` afterwards; nothing is changed without a conflict.
    What it lacks of GRU is the average, so r is as noisy as its batch.
    """

    name = "a_gem"
    title = "A-GEM"
    adds_x = False

    def combine(self, s: Dots) -> Combination:
        return GRU().combine(s)


@dataclass(frozen=True)
class GDR(Rule):
    """Gradient direction rectification (Lin et al. 2024): g + r; of two that conflict, each without the other's part.

    ``g' + r'`` with ``g' = g - (d / m) r`` and ``r' = r - (d / u) g`` if ``d < 0``, else g and r themselves. Promise:
    neither ``<g, .>`` nor ``<r, .>`` of the result is negative. Where the public code departs from the text is in
    :func:`gru_fast.unlearn.gdr.gdr_`.

    >>> GDR().combine(Dots(-2.0, 4.0, 5.0, True)).alpha, GDR().combine(Dots(-2.0, 4.0, 5.0, True)).beta
    (1.4, 1.5)
    """

    name = "gdr"
    title = "GDR"

    def combine(self, s: Dots) -> Combination:
        d, m, u = s.d, s.m, s.u
        if not s.conflict or not u > 0.0:
            return Combination(1.0, 1.0 if m > 0.0 else 0.0, u + m + 2.0 * d, u + m)
        left = 1.0 - (d / u) * (d / m)  # 1 - cos^2
        alpha, beta = 1.0 - d / u, 1.0 - d / m
        # The projected two are as far apart as g and r were close: their dot product is -d (1 - cos^2).
        norm_sq = left * (u + m - 2.0 * d) if left > 0.0 else 0.0
        return Combination(alpha, beta, norm_sq, alpha * alpha * u + beta * beta * m, left < CANCELLATION)


@dataclass(frozen=True)
class PCGrad(Rule):
    """Projecting conflicting gradients (Yu et al. 2020, arXiv 2001.06782), of the two tasks here.

    With ``g' = g - (d / m) r`` and ``r' = r - (d / u) g`` if ``d < 0``, else g and r themselves::

        one_sided   w_f g' + w_r r         g alone is projected: what SAGO's code compares with, taken over all tensors
        sum         w_f g' + w_r r'        as published, and in TorchJD
        mean        half of that           what HAMU's code means by its baseline

    Promise: ``<., r> >= 0``, and, two-sided, ``<., g> >= 0`` too. SAGO's code (sustech-nlp/SAGO) divides by
    m + 1e-10 and decides tensor by tensor unless told otherwise; HAMU's (aoi3142/HAMU) has the sign of the conflict
    wrong and projects nothing where there is one. SafeGrad (arXiv 2508.07172) is the one-sided form with w_f = 1 and r
    of a KL divergence.
    """

    name = "pcgrad"
    title = "PCGrad"

    form: str = option(
        "one_sided", "what is projected, and how the two are joined", choices=("one_sided", "sum", "mean")
    )
    w_f: float = option(1.0, "weight of the unlearning gradient", at_least=0.0)
    w_r: float = option(1.0, "weight of the retain gradient (0.5 in SAGO's recipe for WMDP bio)", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        share = 0.5 if self.form == "mean" else 1.0
        w_f, w_r = share * self.w_f, share * self.w_r
        if not s.conflict or not s.u > 0.0:
            return without_one(w_f, w_r, s)
        if self.form == "one_sided":
            return weighted(w_f, w_r - w_f * (s.d / s.m), s)
        return weighted(w_f - w_r * (s.d / s.u), w_r - w_f * (s.d / s.m), s)


@dataclass(frozen=True)
class UPGrad(Rule):
    """Unconflicting projection of gradients (Quinton and Rey 2024, arXiv 2406.16232).

    Each gradient projected onto the cone in which no task gets worse, and the mean of these: of two tasks half of
    PCGrad's sum. Promise: ``<., r> >= 0`` and ``<., g> >= 0``. TorchJD adds 1e-4 to the normalised Gram matrix first,
    so its coefficients are off by about as much.
    """

    name = "upgrad"
    title = "UPGrad"

    def combine(self, s: Dots) -> Combination:
        return PCGrad(form="mean").combine(s)


@dataclass(frozen=True)
class BLUR(Rule):
    """Bi-level unlearning (arXiv 2506.08164): one loss below, the other above it, with or without a conflict.

    ``below="forget"`` (as published): ``(g0 - d / u) g + r``, so that ``<., g> = g0 |g|^2`` exactly: the retain
    gradient is free but along g. ``below="retain"``: ``g + (g0 - d / m) r``, so that ``<., r> = g0 |r|^2``. The
    public code takes the dot products tensor by tensor for MUSE, and under gradient accumulation sees the last
    micro-batch alone for TOFU.
    """

    name = "blur"
    title = "BLUR"

    below: str = option("forget", "the loss whose fall is fixed", choices=("forget", "retain"))
    g0: float = option(1.0, "how fast that loss falls, in units of its gradient's square", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        if self.below == "forget":
            return without_one(self.g0 - s.d / s.u if s.u > 0.0 else self.g0, 1.0, s)
        return weighted(1.0, self.g0 - s.d / s.m if s.m > 0.0 else 0.0, s)


@dataclass(frozen=True)
class GU(Rule):
    """Geometric unlearning, Euclidean (arXiv 2511.17100): g without all of its component along r, helpful or not.

    ``w_f (g - (d / m) r) + w_r r``. Promise: ``<., r> = w_r |r|^2``, however g lies. The public code
    (Lemutisme/geo-unlearning) was first per tensor, in a method that transformers never calls; today it rectifies the
    update that AdamW makes.
    """

    name = "gu"
    title = "GU"

    w_f: float = option(1.0, "weight of the unlearning gradient (0.125 in its recipe for SimNPO)", at_least=0.0)
    w_r: float = option(1.0, "weight of the retain gradient", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        return weighted(self.w_f, self.w_r - self.w_f * (s.d / s.m) if s.m > 0.0 else 0.0, s)
