"""What one step did, read from the device only when somebody looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from gru_fast.core import stats
from gru_fast.core import update as sums
from gru_fast.core.rules import GRU, Rule
from gru_fast.core.stats import LazyStats, cosine


@dataclass(frozen=True)
class GroupRectification:
    """One group of parameters in a step: <g, e>, |g|, |e|, what was done with it, and whether <g, e> < 0."""

    dot: float
    norm_before: float
    norm_ema: float
    alpha: float
    beta: float
    conflict: bool


@dataclass(frozen=True)
class SetRectification:
    """One retain set, or kept gradient, x in a step: <g, x>, |x|, what of x was added to g, and whether <g, x> < 0.

    ``cos`` and ``cos_after``: of g and x before and after the step.
    """

    dot: float
    norm: float
    beta: float
    conflict: bool
    cos: float
    cos_after: float


class Rectification(LazyStats):
    """The statistics of one :func:`gru_fast.rectify_` or :func:`gru_fast.measure`, over all parameters as one vector.

    Lazy: made without a host sync; the first attribute that is read fetches all of them. Ratios with a zero norm are
    NaN.

    What ``update_`` attributes say of is the step that the optimizer makes, ``theta <- theta - lr U``: they are numbers
    after :class:`gru_fast.optim.AdamW` with ``rectify="update"`` or ``"both"`` and after
    :func:`gru_fast.optim.measure_update`, else NaN.

    Args:
        stats: float64, at least 14 values in the order of the core's ``Stats``; kept, not copied.
        rule: by which g was rectified; None: GRU.
        is_direct: whether r itself was in the place of e, which then stands for it in every name here.
        groups: labels and statistics of the groups that the rule was for each of; None: for all as one vector.
        sets: of a step against several vectors its whole statistics, and their number; the mean of the vectors then
            stands for e in every name here, and ``conflict`` says whether any of them had one.
    """

    def __init__(
        self,
        stats: Tensor,
        rule: Rule | None = None,
        *,
        is_direct: bool = False,
        groups: tuple[list[str], Tensor] | None = None,
        sets: tuple[Tensor, int] | None = None,
    ) -> None:
        super().__init__(stats)
        self._sets = sets
        self._labelled = groups
        self.is_direct = is_direct
        self.rule = GRU() if rule is None else rule
        self.update: Tensor | None = None
        self._update_rectified = False

    def note_update(self, update: Tensor, *, rectified: bool) -> None:
        """Adds what is known of the optimizer's step, which comes later.

        Args:
            update: float64, the sums of :mod:`gru_fast.core.update`; kept, not copied.
            rectified: whether U was changed where it had to be, or only looked at.
        """
        self.update, self._update_rectified = update, rectified
        self.__dict__.pop("update_values", None)

    @property
    def dot(self) -> float:
        """<g, e> before the step (NaN if an all-or-nothing step met NaN or Inf and computed nothing)."""
        return math.nan if self.values[stats.VETOED] else self.values[stats.DOT]

    @property
    def norm_before(self) -> float:
        """|g| before."""
        return math.nan if self.values[stats.VETOED] else math.sqrt(self.values[stats.GRAD_NORM_SQ])

    @property
    def norm_after(self) -> float:
        """|g| after rule and clipping; in 16 bit an upper bound if g had to be scaled once more."""
        return self.norm_before if self.skipped else math.sqrt(self.values[stats.OUT_NORM_SQ])

    @property
    def norm_ema(self) -> float:
        """|e|, of this step's e."""
        return math.nan if self.values[stats.VETOED] else math.sqrt(self.values[stats.EMA_NORM_SQ])

    @property
    def alpha(self) -> float:
        """``g <- alpha * g + beta * e`` is what the step did (NaN where each group or element has its own)."""
        if self._labelled is not None or self.rule.elementwise:
            return math.nan
        return self.values[stats.ALPHA] * self.values[stats.RESCALE]

    @property
    def beta(self) -> float:
        """See :attr:`alpha` (NaN of several retain sets, of which each has its own: :meth:`sets`)."""
        if self._labelled is not None or self._sets is not None or self.rule.elementwise:
            return math.nan
        return self.values[stats.BETA] * self.values[stats.RESCALE]

    @property
    def cos(self) -> float:
        """cos(g, e) before: below 0 the unlearning step would have raised the retain loss."""
        return cosine(self.dot, self.norm_before, self.norm_ema)

    @property
    def cos_after(self) -> float:
        """cos(g, e) after: 0 after GRU's projection, as before where nothing was added to g."""
        if self.degenerate:
            return math.nan
        if self.rule.elementwise and not self.skipped:  # <g, e> as written is in the place of alpha
            return cosine(self.values[stats.ALPHA] * self.values[stats.RESCALE], self.norm_after, self.norm_ema)
        if self._sets is not None and not self.skipped:
            after = self._dots_after
            return cosine(math.fsum(after) / len(after), self.norm_after, self.norm_ema)
        if self.skipped or (self.values[stats.BETA] == 0.0 and self._labelled is None):
            return self.cos
        terms = [self.values[stats.ALPHA] * self.dot, self.values[stats.BETA] * self.values[stats.EMA_NORM_SQ]]
        if self._labelled is not None:
            groups = self._labelled[1].tolist()
            terms = [g[stats.GROUP_ALPHA] * g[stats.DOT] for g in groups]
            terms += [g[stats.GROUP_BETA] * g[stats.EMA_NORM_SQ] for g in groups]
        along = math.fsum(terms)
        if abs(along) <= _ROUNDING * math.fsum(map(abs, terms)):
            return 0.0
        return cosine(along * self.values[stats.RESCALE], self.norm_after, self.norm_ema)

    @property
    def angle_before(self) -> float:
        """Angle between g and e before, in degrees."""
        return _degrees(self.cos)

    @property
    def angle_after(self) -> float:
        """Angle between g and e after, in degrees: 90 after GRU's projection."""
        return _degrees(self.cos_after)

    @property
    def conflict(self) -> bool:
        """<g, e> was negative, so g was rectified (by :func:`gru_fast.measure`: would have been)."""
        return bool(self.values[stats.CONFLICT])

    @property
    def clipped(self) -> bool:
        """The (rectified) g was longer than tau."""
        return bool(self.values[stats.CLIPPED])

    @property
    def opposed(self) -> float:
        """Of an element-wise rule: how many elements of g and e had different signs; else NaN."""
        return self.values[stats.BETA] if self.rule.elementwise and not self.values[stats.VETOED] else math.nan

    @property
    def degenerate(self) -> bool:
        """cos(g, e) = -1: nothing of g was left and it is 0 now. Draw another batch."""
        return bool(self.values[stats.DEGENERATE])

    @property
    def grad_nonfinite(self) -> bool:
        """NaN or Inf in g (or in an e that came with it): g was left untouched."""
        found = bool(self.values[stats.GRAD_NONFINITE])
        return found and not math.isfinite(self.values[stats.GRAD_NORM_SQ]) if self.is_direct else found

    @property
    def retain_nonfinite(self) -> bool:
        """NaN or Inf in r: those elements of e kept their old value (without an e, g is left untouched)."""
        if self.is_direct:
            return bool(self.values[stats.GRAD_NONFINITE]) and not math.isfinite(self.values[stats.EMA_NORM_SQ])
        return bool(self.values[stats.RETAIN_NONFINITE])

    @property
    def nonfinite(self) -> bool:
        """NaN or Inf anywhere in g or r."""
        return self.grad_nonfinite or self.retain_nonfinite or bool(self.values[stats.VETOED])

    @property
    def skipped(self) -> bool:
        """g was left untouched because of NaN or Inf: do not apply it."""
        needed = self.retain_nonfinite and (self.rule.adds_x or self.is_direct)
        return self.grad_nonfinite or needed or bool(self.values[stats.VETOED])

    # ---- the update --------------------------------------------------------------------------------------------------

    @cached_property
    def update_values(self) -> list[float] | None:
        """The sums of U, fetched when first asked for; None where nobody took them."""
        return None if self.update is None or self.skipped else self.update.tolist()

    def _of_update(self, place: int) -> float:
        return math.nan if self.update_values is None else self.update_values[place]

    @property
    def update_dot(self) -> float:
        """<lr U, e> before: below 0 the optimizer's step raises the retain loss to first order, by so much."""
        return self._of_update(sums.DOT)

    @property
    def update_norm(self) -> float:
        """|lr U| before."""
        return math.sqrt(self._of_update(sums.STEP_NORM_SQ))

    @property
    def update_cos(self) -> float:
        """cos(lr U, e) before, over the parameters that move."""
        norm = math.sqrt(self._of_update(sums.EMA_NORM_SQ))
        return cosine(self.update_dot, self.update_norm, norm)

    @property
    def update_cos_after(self) -> float:
        """The same after: 0 where U was rectified."""
        return 0.0 if self._update_factor > 0.0 else self.update_cos

    @property
    def update_conflict(self) -> bool:
        """<lr U, e> was negative, so U was rectified (where it was only looked at: would have been)."""
        return self.update_values is not None and sums.update_factor(self.update_values) > 0.0

    @property
    def update_change(self) -> float:
        """|lr (Z - U)|: how far theta went elsewhere because U was rectified; 0 where it was not."""
        return self._update_factor * math.sqrt(self._of_update(sums.CHANGE_SQ))

    @property
    def update_largest(self) -> float:
        """The largest of |Z - U|, where elements of AdamW's U are about 1 (NaN of parameters spread over processes)."""
        return self._update_factor * self._of_update(sums.LARGEST)

    @property
    def update_nonfinite(self) -> bool:
        """NaN or Inf in U (from the moments, or weights): the weights were left as they were."""
        return self.update_values is not None and not sums.is_finite_update(self.update_values)

    @property
    def _update_factor(self) -> float:
        if self.update_values is None:
            return math.nan
        return sums.update_factor(self.update_values) if self._update_rectified else 0.0

    def groups(self) -> dict[str, GroupRectification]:
        """What was done with each group of parameters, by its label; empty where they were one vector."""
        if self._labelled is None:
            return {}
        labels, found = self._labelled
        rescale = self.values[stats.RESCALE]
        return {
            label: GroupRectification(
                dot=g[stats.DOT],
                norm_before=math.sqrt(g[stats.GRAD_NORM_SQ]),
                norm_ema=math.sqrt(g[stats.EMA_NORM_SQ]),
                alpha=g[stats.GROUP_ALPHA] * rescale,
                beta=g[stats.GROUP_BETA] * rescale,
                conflict=bool(g[stats.GROUP_CONFLICT]),
            )
            for label, g in zip(labels, found.tolist(), strict=True)
        }

    def sets(self) -> list[SetRectification]:
        """What was done with each retain set and kept gradient, in order; empty where there was one e."""
        if self._sets is None:
            return []
        found, gram = self._set_values, self._gram
        dots, betas, rescale = found[stats.SET_DOTS], found[stats.SET_BETAS], found[stats.RESCALE]
        return [
            SetRectification(
                dot=dots[j],
                norm=math.sqrt(gram[j][j]),
                beta=betas[j] * rescale,
                conflict=self.conflict and dots[j] < 0.0 < gram[j][j],
                cos=cosine(dots[j], self.norm_before, math.sqrt(gram[j][j])),
                cos_after=cosine(after, self.norm_after, math.sqrt(gram[j][j])),
            )
            for j, after in enumerate(self._dots_after)
        ]

    @cached_property
    def _set_values(self) -> list[float]:
        found: list[float] = [] if self._sets is None else self._sets[0].tolist()
        return found

    @cached_property
    def _gram(self) -> list[list[float]]:
        """<x_i, x_j> of the vectors of a step against several."""
        count, pairs = 0 if self._sets is None else self._sets[1], self._set_values[stats.SET_GRAM]
        return [[pairs[stats.pair_at(min(i, j), max(i, j))] for i in range(count)] for j in range(count)]

    @property
    def _dots_after(self) -> list[float]:
        """<g, x_j> afterwards: 0 where what is left of the terms is rounding."""
        found, out = self._set_values, []
        if self.skipped:
            return found[stats.SET_DOTS][: len(self._gram)]
        for dot, products in zip(found[stats.SET_DOTS], self._gram, strict=False):
            betas = found[stats.SET_BETAS]
            terms = [found[stats.ALPHA] * dot, *(b * p for b, p in zip(betas, products, strict=False))]
            along = math.fsum(terms)
            out.append(0.0 if abs(along) <= _ROUNDING * math.fsum(map(abs, terms)) else along * found[stats.RESCALE])
        return out

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for a logger; of the update, where there is something to say."""
        names = [name for name, value in vars(Rectification).items() if isinstance(value, property)]
        names = [name for name in names if not name.startswith("_")]
        if self.update is None:
            names = [name for name in names if not name.startswith("update_")]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        flags = ("conflict", "clipped", "degenerate", "nonfinite")
        said = " ".join(flag for flag in flags if getattr(self, flag)) or "nothing to do"
        return (
            f"Rectification(cos={self.cos:.4f}, angle {self.angle_before:.1f} -> {self.angle_after:.1f} deg, "
            f"norm {self.norm_before:.4g} -> {self.norm_after:.4g}, {said})"
        )


_ROUNDING = 2.0**-40  # of the two terms of <g, e> afterwards: what is smaller is 0, by a projection


def _degrees(cosine: float) -> float:
    return math.nan if math.isnan(cosine) else math.degrees(math.acos(cosine))
