"""What one step did, read from the device only when somebody looks."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gru_fast.core import stats
from gru_fast.core.rules import NEED_ALL_OF_R
from gru_fast.core.stats import LazyStats, cosine


class Rectification(LazyStats):
    """The statistics of one :func:`gru_fast.rectify_` or :func:`gru_fast.measure`, over all parameters as one vector.

    Lazy: made without a host sync; the first attribute that is read fetches all of them. Ratios with a zero norm are
    NaN.

    Args:
        stats: float64, at least 14 values in the order of the core's ``Stats``; kept, not copied.
        rule: by which g was rectified.
    """

    def __init__(self, stats: Tensor, rule: str = "gru") -> None:
        super().__init__(stats)
        self.rule = rule

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
        """``g <- alpha * g + beta * e`` is what the step did."""
        return self.values[stats.ALPHA] * self.values[stats.RESCALE]

    @property
    def beta(self) -> float:
        """See :attr:`alpha`."""
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
        if self.skipped or self.values[stats.BETA] == 0.0:
            return self.cos
        own = self.values[stats.ALPHA] * self.dot
        added = self.values[stats.BETA] * self.values[stats.EMA_NORM_SQ]
        along = own + added
        if abs(along) <= _ROUNDING * (abs(own) + abs(added)):
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
    def degenerate(self) -> bool:
        """cos(g, e) = -1: nothing of g was left and it is 0 now. Draw another batch."""
        return bool(self.values[stats.DEGENERATE])

    @property
    def grad_nonfinite(self) -> bool:
        """NaN or Inf in g (or in an e that came with it): g was left untouched."""
        return bool(self.values[stats.GRAD_NONFINITE])

    @property
    def retain_nonfinite(self) -> bool:
        """NaN or Inf in r: those elements of e kept their old value."""
        return bool(self.values[stats.RETAIN_NONFINITE])

    @property
    def nonfinite(self) -> bool:
        """NaN or Inf anywhere in g or r."""
        return self.grad_nonfinite or self.retain_nonfinite or bool(self.values[stats.VETOED])

    @property
    def skipped(self) -> bool:
        """g was left untouched because of NaN or Inf: do not apply it."""
        needed = self.retain_nonfinite and self.rule in NEED_ALL_OF_R
        return self.grad_nonfinite or needed or bool(self.values[stats.VETOED])

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for a logger."""
        names = [name for name, value in vars(Rectification).items() if isinstance(value, property)]
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
