"""What a rule is: from the sums of a step to its coefficients. It never touches gradient memory."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

CANCELLATION = 1.0 / 64  # below this share of its terms a norm is measured, not computed
Options = tuple[float, float, float, float]


@dataclass(frozen=True)
class Combination:
    """What a rule says, before clipping.

    Args:
        alpha, beta: of ``g <- alpha * g + beta * x``.
        norm_sq: of the result, as far as the sums tell.
        size_sq: of the terms that may cancel in it, which it is held against.
        cancels: whether norm_sq has lost too many digits to clip by.
    """

    alpha: float
    beta: float
    norm_sq: float
    size_sq: float
    cancels: bool = False


@dataclass(frozen=True)
class Dots:
    """``d = <g, x>``, ``m = |x|^2``, ``u = |g|^2``, and whether descending g would raise the retain loss: d < 0 < m."""

    d: float
    m: float
    u: float
    conflict: bool


@dataclass(frozen=True)
class Rule:
    """A rule with its options: ``g <- alpha * g + beta * x`` from ``d = <g, x>``, ``m = |x|^2``, ``u = |g|^2``.

    g is the gradient of the unlearning objective, a vector to descend. x is e, the average of the retain gradients, or
    r, that of this step alone, as whoever calls :func:`gru_fast.rectify_` passes them; ``against`` says which of the
    two the rule was published with. A subclass is a frozen dataclass whose fields, made by :func:`option`, are its
    options. Where x is all zeros (there is no retain gradient), or g is, what remains are the weights of the two.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # for listings and tables
    against: ClassVar[str] = "retain"  # "ema": e; "retain": r itself
    elementwise: ClassVar[bool] = False  # decides element by element, by a pass of its own, and not by sums
    several: ClassVar[bool] = False  # also takes several vectors: several.py
    adds_x: ClassVar[bool] = True  # also without a conflict: give the step up where NaN or Inf kept some of r out of e

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(f"{self.name}.{field.name}", getattr(self, field.name), field)
            object.__setattr__(self, field.name, value)

    def combine(self, s: Dots) -> Combination:
        """The coefficients, and what they make of the norm."""
        raise NotImplementedError(f"{self.name}: decides element by element")

    @property
    def options(self) -> Options:
        """The options as the kernels take them: numbers, in the order of the fields, choices by their place."""
        numbers = [_number(getattr(self, field.name), field) for field in dataclasses.fields(self)]
        return (*numbers, *[0.0] * (4 - len(numbers)))  # type: ignore[return-value]


def option(default: Any, text: str, *, at_least: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """An option of a rule: a dataclass field with its help ``text`` and its range (of finite numbers) or choices."""
    return dataclasses.field(default=default, metadata={"help": text, "at_least": at_least, "choices": choices})


def _checked(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    choices, at_least = field.metadata["choices"], field.metadata["at_least"]
    if choices:
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        return value
    if value is None and field.default is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (at_least is not None and value < at_least):
        wanted = "a finite number" + ("" if at_least is None else f" of at least {at_least:g}")
        raise ValueError(f"{name}: expected {wanted}{' or none' if field.default is None else ''}, got {value!r}")
    return float(value)


def _number(value: Any, field: dataclasses.Field[Any]) -> float:
    if field.metadata["choices"]:
        return float(field.metadata["choices"].index(value))
    return -1.0 if value is None else float(value)


def weighted(alpha: float, beta: float, s: Dots) -> Combination:
    """``alpha * g + beta * x``, its norm from the sums."""
    own, added = alpha * alpha * s.u, beta * beta * s.m
    total = own + added + 2.0 * (alpha * beta * s.d)
    size = own + added
    cancels = total < CANCELLATION * size or (alpha == 0.0 and beta == 0.0)
    return Combination(alpha, beta, max(total, 0.0), size, cancels)


def without_one(alpha: float, beta: float, s: Dots) -> Combination:
    """What an x or g of zeros leaves of a rule that adds x: its weights."""
    return weighted(alpha, beta if s.m > 0.0 else 0.0, s)
