"""What one step did, read from the device only when somebody looks."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from torch import Tensor

_FIELDS = (
    "dot",
    "ema_norm_sq",
    "grad_norm_sq",
    "retain_nonfinite",
    "vetoed",
    "written_norm_sq",
    "alpha",
    "beta",
    "rescale",
    "out_norm_sq",
    "conflict",
    "clipped",
    "degenerate",
    "grad_nonfinite",
)


class Rectification:
    """The statistics of one :func:`gru_fast.rectify_` or :func:`gru_fast.measure`, over all parameters as one vector.

    Lazy: made without a host sync; the first attribute that is read fetches all of them. Ratios with a zero norm are
    NaN.

    Args:
        stats: float64, at least 14 values in the order of the core's ``Stats``; kept, not copied.
    """

    def __init__(self, stats: Tensor) -> None:
        self.stats = stats

    @cached_property
    def _values(self) -> dict[str, float]:
        return values_of(self.stats)

    @property
    def dot(self) -> float:
        """<g, e> before the step (NaN if an all-or-nothing step met NaN or Inf and computed nothing)."""
        return math.nan if self._values["vetoed"] else self._values["dot"]

    @property
    def norm_before(self) -> float:
        """|g| before."""
        return math.nan if self._values["vetoed"] else math.sqrt(self._values["grad_norm_sq"])

    @property
    def norm_after(self) -> float:
        """|g| after projection and clipping; in 16 bit an upper bound if g had to be scaled once more."""
        return self.norm_before if self.skipped else math.sqrt(self._values["out_norm_sq"])

    @property
    def norm_ema(self) -> float:
        """|e|, of this step's e."""
        return math.nan if self._values["vetoed"] else math.sqrt(self._values["ema_norm_sq"])

    @property
    def alpha(self) -> float:
        """``g <- alpha * g + beta * e`` is what the step did."""
        return self._values["alpha"] * self._values["rescale"]

    @property
    def beta(self) -> float:
        """See :attr:`alpha`."""
        return self._values["beta"] * self._values["rescale"]

    @property
    def cos(self) -> float:
        """cos(g, e) before: below 0 the unlearning step would have raised the retain loss."""
        return cosine(self.dot, self.norm_before, self.norm_ema)

    @property
    def cos_after(self) -> float:
        """cos(g, e) after: 0 after a projection, as before otherwise."""
        if self.degenerate:
            return math.nan
        return 0.0 if self.conflict and self._values["beta"] != 0.0 else self.cos

    @property
    def angle_before(self) -> float:
        """Angle between g and e before, in degrees."""
        return _degrees(self.cos)

    @property
    def angle_after(self) -> float:
        """Angle between g and e after, in degrees: 90 after a projection."""
        return _degrees(self.cos_after)

    @property
    def conflict(self) -> bool:
        """<g, e> was negative, so g was projected (by :func:`gru_fast.measure`: would have been)."""
        return bool(self._values["conflict"])

    @property
    def clipped(self) -> bool:
        """The (projected) g was longer than tau."""
        return bool(self._values["clipped"])

    @property
    def degenerate(self) -> bool:
        """cos(g, e) = -1: nothing of g was left and it is 0 now. Draw another batch."""
        return bool(self._values["degenerate"])

    @property
    def grad_nonfinite(self) -> bool:
        """NaN or Inf in g (or in an e that came with it): g was left untouched."""
        return bool(self._values["grad_nonfinite"])

    @property
    def retain_nonfinite(self) -> bool:
        """NaN or Inf in r: those elements of e kept their old value."""
        return bool(self._values["retain_nonfinite"])

    @property
    def nonfinite(self) -> bool:
        """NaN or Inf anywhere in g or r."""
        return self.grad_nonfinite or self.retain_nonfinite or bool(self._values["vetoed"])

    @property
    def skipped(self) -> bool:
        """g was left untouched because of NaN or Inf: do not apply it."""
        return self.grad_nonfinite or bool(self._values["vetoed"])

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for a logger."""
        names = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        flags = ("conflict", "clipped", "degenerate", "nonfinite")
        said = " ".join(flag for flag in flags if getattr(self, flag)) or "nothing to do"
        return (
            f"Rectification(cos={self.cos:.4f}, angle {self.angle_before:.1f} -> {self.angle_after:.1f} deg, "
            f"norm {self.norm_before:.4g} -> {self.norm_after:.4g}, {said})"
        )


def values_of(stats: Tensor) -> dict[str, float]:
    """The core's ``Stats`` by name; reads the device."""
    return dict(zip(_FIELDS, stats.tolist(), strict=False))


def cosine(dot: float, norm_a: float, norm_b: float) -> float:
    """Cosine of two vectors by their dot product and norms; NaN where a norm is 0."""
    norms = norm_a * norm_b
    return max(-1.0, min(1.0, dot / norms)) if norms > 0.0 else math.nan


def _degrees(cosine: float) -> float:
    return math.nan if math.isnan(cosine) else math.degrees(math.acos(cosine))
