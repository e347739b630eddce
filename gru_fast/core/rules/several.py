"""Rules that take several vectors in the place of one e: GEM and the removal of a subspace. csrc/sets.h is the same.

With ``h_j = <g, x_j>`` and ``G_ij = <x_i, x_j>`` they name beta_j of ``g <- g + sum_j beta_j x_j``. Beside one vector
they are rules like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from gru_fast.core.rules.base import CANCELLATION, Combination, Dots, Rule, option, weighted
from gru_fast.core.rules.projections import GRU

DEPENDENT = 1e-10  # a vector of whose square less than this is left beside others lies in their span
SLACK = 1e-12  # by how much of |g| a solution may miss a condition: rounding
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class SetDots:
    """``h_j = <g, x_j>``, ``G_ij = <x_i, x_j>`` and ``u = |g|^2``."""

    h: list[float]
    gram: list[list[float]]
    u: float

    @property
    def conflict(self) -> bool:
        """Whether descending g would raise the loss of any of the sets to first order."""
        return any(h < 0.0 < self.gram[j][j] for j, h in enumerate(self.h))


@dataclass(frozen=True)
class Spread:
    """What such a rule says, before clipping: as :class:`Combination`, with a beta for each vector."""

    betas: list[float]
    norm_sq: float
    size_sq: float
    cancels: bool


class SeveralRule(Rule):
    """A rule that also takes several vectors."""

    several: ClassVar[bool] = True

    def spread(self, dots: SetDots) -> Spread:
        """The coefficients, and what they make of the norm."""
        units = _Units(dots)
        betas = [v / units.lengths[j] if units.lengths[j] else 0.0 for j, v in enumerate(self._solve(units, dots))]
        added = self._added(dots)
        betas = [b + added if units.lengths[j] else 0.0 for j, b in enumerate(betas)]
        norm_sq = dots.u + 2.0 * math.fsum(b * h for b, h in zip(betas, dots.h, strict=True))
        pairs = [(i, j) for j in range(len(betas)) for i in range(len(betas))]
        norm_sq += math.fsum(betas[i] * betas[j] * dots.gram[i][j] for i, j in pairs)
        size_sq = dots.u + math.fsum(b * b * dots.gram[j][j] for j, b in enumerate(betas))
        return Spread(betas, max(norm_sq, 0.0), size_sq, norm_sq < CANCELLATION * size_sq)

    def _solve(self, units: _Units, dots: SetDots) -> list[float]:
        raise NotImplementedError

    def _added(self, dots: SetDots) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class GEM(SeveralRule):
    """Gradient episodic memory (Lopez-Paz and Ranzato 2017): the nearest vector that conflicts with none of the sets.

    ``g + sum v_j x_j`` where v minimises ``1/2 v'Gv + h'v`` over ``v >= margin``, if some ``h_j < 0``; else g itself.
    Promise: ``<., x_j> >= 0`` for every j, at the smallest change of g (margin 0). Of one vector it is GRU. Their code
    (facebookresearch/GradientEpisodicMemory) solves the same on a copy of all gradients in host memory, raw ones of a
    memory batch for each task, and fails where two of them depend on each other; here the sums are taken in one pass,
    vectors of zeros and dependent ones are no matter, and the solution is exact, by trying the at most 255 sets of
    conditions that may bind. A margin pulls g towards every set wherever one conflicts.

    >>> GEM().spread(SetDots([-1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], 4.0)).betas
    [1.0, 0.0]
    """

    name = "gem"
    title = "GEM"
    adds_x = False

    margin: float = option(0.0, "least multiplier of every set where one conflicts (memory strength)", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        return weighted(1.0, self.margin, s) if s.conflict and self.margin * s.m > -s.d else GRU().combine(s)

    def _solve(self, units: _Units, dots: SetDots) -> list[float]:
        if not any(h < 0.0 for h in units.h):
            return [0.0] * len(units.h)
        pulled = [
            h + self.margin * math.fsum(c * length for c, length in zip(row, units.lengths, strict=True))
            for h, row in zip(units.h, units.gram, strict=True)
        ]
        return _nearest_in_cone(units.gram, pulled, math.sqrt(dots.u))

    def _added(self, dots: SetDots) -> float:
        return self.margin if dots.conflict else 0.0


@dataclass(frozen=True)
class Subspace(SeveralRule):
    """g without its component in the span of the sets, helpful or not, and w_r times the mean of the sets.

    ``g - X G^+ h + w_r mean(x)``. Promise: ``<., x_j>`` is what the mean alone has, so 0 with ``w_r = 0``, whatever g
    is. It takes more of g than GEM on the same vectors, and forgetting can cost nothing to first order in any direction
    they span: OrthoGrad (arXiv 2503.02312, of single rows' gradients, with the mean added), ONPO (of earlier requests'
    gradients) and OGPSA (arXiv 2602.07892, of cached ones). OrthoGrad's code decomposes every tensor by itself,
    OGPSA's too, and in every micro-batch; here it is one vector of all parameters, at the end of a step.

    >>> Subspace().spread(SetDots([-1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], 6.0)).betas
    [1.0, -2.0]
    """

    name = "subspace"
    title = "Subspace"

    w_r: float = option(0.0, "weight of the mean of the sets, added afterwards", at_least=0.0)

    def combine(self, s: Dots) -> Combination:
        return weighted(1.0, self.w_r - s.d / s.m if s.m > 0.0 else 0.0, s)

    def _solve(self, units: _Units, dots: SetDots) -> list[float]:
        chosen = _independent(units.gram)
        return _solved(units.gram, units.h, chosen) or [0.0] * len(units.h)

    def _added(self, dots: SetDots) -> float:
        return self.w_r / len(dots.h)


class _Units:
    """The sums in units in which every vector has length 1; one of zeros stays zeros, and takes no part."""

    def __init__(self, dots: SetDots) -> None:
        count = len(dots.h)
        self.lengths = [math.sqrt(dots.gram[j][j]) if dots.gram[j][j] > 0.0 else 0.0 for j in range(count)]
        self.h = [h / length if length else 0.0 for h, length in zip(dots.h, self.lengths, strict=True)]
        self.gram = [[self._cosine(dots, i, j) for j in range(count)] for i in range(count)]

    def _cosine(self, dots: SetDots, i: int, j: int) -> float:
        if not (self.lengths[i] and self.lengths[j]):
            return 0.0
        return 1.0 if i == j else dots.gram[i][j] / self.lengths[i] / self.lengths[j]


def _nearest_in_cone(gram: Matrix, h: Sequence[float], norm: float) -> list[float]:
    """The smallest ``1/2 v'Gv + h'v`` over ``v >= 0``: of all choices of what is not 0 the first that is right.

    There is a solution on vectors that do not depend on each other, so that dependent choices are passed over.
    """
    best, least = [0.0] * len(h), math.inf
    for chosen in _choices(len(h)):
        v = _solved(gram, h, chosen)
        if v is None:
            continue
        missed = _missed(gram, h, chosen, v, norm)
        if missed < least:
            best, least = [max(x, 0.0) for x in v], missed
        if missed <= SLACK:
            break
    return best


def _choices(count: int) -> Iterator[list[int]]:
    """Small ones first, those of one size by the number they are as bits."""
    for size in range(count + 1):
        yield from sorted(
            (list(c) for c in combinations(range(count), size)), key=lambda chosen: sum(1 << j for j in chosen)
        )


def _missed(gram: Matrix, h: Sequence[float], chosen: Sequence[int], v: Sequence[float], norm: float) -> float:
    """By how much v misses ``v >= 0``, and ``Gv + h >= 0`` where it is 0, of |g|."""
    rest = [v[j] if j in chosen else h[j] + sum(map(float.__mul__, gram[j], v)) for j in range(len(h))]
    size = norm + sum(map(abs, v))
    return max(0.0, -min(rest)) / size if size > 0.0 else 0.0


def _solved(gram: Matrix, h: Sequence[float], chosen: Sequence[int]) -> list[float] | None:
    """v with ``Gv = -h`` on the chosen vectors and 0 elsewhere, by Cholesky; None if they depend on each other."""
    lower: list[list[float]] = []
    half: list[float] = []
    for i, at in enumerate(chosen):
        row: list[float] = []
        for j in range(i):
            rest = gram[at][chosen[j]] - sum(a * b for a, b in zip(row, lower[j], strict=False))
            row.append(rest / lower[j][j])
        left = gram[at][at] - sum(a * a for a in row)
        if not left > DEPENDENT:
            return None
        half.append((-h[at] - sum(a * b for a, b in zip(row, half, strict=True))) / math.sqrt(left))
        lower.append([*row, math.sqrt(left)])
    v = [0.0] * len(h)
    for i in reversed(range(len(chosen))):
        later = sum(lower[k][i] * v[chosen[k]] for k in range(i + 1, len(chosen)))
        v[chosen[i]] = (half[i] - later) / lower[i][i]
    return v


def _independent(gram: Matrix) -> list[int]:
    """Vectors that span what all do: again and again the one of which most is left beside those taken."""
    count = len(gram)
    left = [gram[j][j] for j in range(count)]
    lower: list[list[float]] = [[] for _ in range(count)]
    chosen: list[int] = []
    for _ in range(count):
        pivot = max(range(count), key=lambda j: left[j])
        if not left[pivot] > DEPENDENT:
            break
        root = math.sqrt(left[pivot])
        of_pivot = list(lower[pivot])
        for j in range(count):
            rest = gram[j][pivot] - sum(a * b for a, b in zip(lower[j], of_pivot, strict=True))
            lower[j].append(rest / root)
            left[j] -= lower[j][-1] ** 2
        left[pivot] = 0.0
        chosen.append(pivot)
    return sorted(chosen)
