"""The right answer in float64, and how far a result is from it. Shares no code with the product or the baselines.

One more thing is checked of a 16-bit EMA that is rounded stochastically: no element is off by more than one unit in the
last place, and the errors have no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from problem import Problem, periods

# Relative error by norm that a form may show in g and in e. 16-bit: nearly all of it is the rounding of the output.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_MANTISSA_BITS = {torch.float16: 11, torch.bfloat16: 8}
_SMALLEST_ULP = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


@dataclass(frozen=True)
class Answer:
    """g and e after the step, one period each, float64, not rounded to their dtypes; the `tau` that was used."""

    grad: torch.Tensor
    ema: torch.Tensor
    tau: float


def start(problem: Problem, case: str) -> Answer:
    """Puts the problem into `case`, with a `tau` that makes it what it says, and works out the exact result."""
    problem.set_case(case, float("inf"))
    grad, retain, ema = (x.double() for x in (problem.grad_tile, problem.retain_tile, problem.ema_tile))
    ema = (1 - problem.gamma) * ema + problem.gamma * retain
    # Every element of a period occurs this often in the whole.
    repeats, rest = divmod(problem.numel, problem.period)
    counts = torch.full_like(grad, repeats)
    counts[:rest] += 1
    dot, ema_norm_sq = float((counts * grad * ema).sum()), float((counts * ema * ema).sum())
    if (dot < 0) != (case == "full"):
        raise ValueError(f"case {case}: <g, e> = {dot:.1e}; {problem.numel} elements are too few to set it up")
    if dot < 0:
        grad = grad - dot / ema_norm_sq * ema
    norm = sqrt(float((counts * grad * grad).sum()))
    tau = 0.5 * norm if case == "full" else 10 * norm  # finite in both: every form has to compute |g|
    problem.set_case(case, tau)
    return Answer(grad * min(1.0, tau / norm), ema, tau)


@dataclass(frozen=True)
class Accuracy:
    """Relative errors by norm; of a stochastically rounded EMA also the worst error in ulps and the bias in sigmas."""

    grad_error: float
    ema_error: float
    ema_ulps: float | None = None
    ema_bias: float | None = None

    def complaint(self, problem: Problem) -> str | None:
        """What is beyond tolerance, or None."""
        errors = {"g": (self.grad_error, problem.grad_dtype), "e": (self.ema_error, problem.ema_dtype)}
        found = [
            f"{what} is off by {error:.1e}, tolerance {TOLERANCE[dtype]:.0e}"
            for what, (error, dtype) in errors.items()
            if not error <= TOLERANCE[dtype]
        ]
        if self.ema_ulps is not None and not self.ema_ulps <= 1.01:
            found.append(f"an element of e is off by {self.ema_ulps:.2f} ulp, expected at most 1")
        if self.ema_bias is not None and not abs(self.ema_bias) <= 6:
            found.append(f"e is biased by {self.ema_bias:+.1f} standard deviations")
        return "; ".join(found) or None


def compare(
    problem: Problem, answer: Answer, grad: torch.Tensor, ema: torch.Tensor, *, stochastic: bool = False
) -> Accuracy:
    """A result (flat g and e after one step from the start) against the answer."""
    errors = [_relative_error(flat, exact) for flat, exact in ((grad, answer.grad), (ema, answer.ema))]
    return Accuracy(*errors, *(_rounding(ema, answer.ema) if stochastic else ()))


def _relative_error(flat: torch.Tensor, exact: torch.Tensor) -> float:
    error_sq, norm_sq = torch.zeros(2, dtype=torch.float64, device=flat.device).unbind()
    for part, wanted in periods(flat, exact):
        error_sq = error_sq + (part - wanted).square_().sum()
        norm_sq = norm_sq + torch.dot(wanted, wanted)
    return sqrt(float(error_sq / norm_sq))


def _rounding(flat: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The largest error in ulps, and their mean (counted away from zero) over its standard deviation."""
    # What float32 arithmetic does to e before the rounding. It shows where the two terms of e cancel, and where it
    # carries e over a power of two: from there on units are twice as large.
    slack = 2.0**-22 * exact.abs().max()
    exponent = torch.frexp(exact.abs() + slack).exponent - _MANTISSA_BITS[flat.dtype]
    ulp = torch.ldexp(torch.ones_like(exact), exponent).clamp_(min=_SMALLEST_ULP[flat.dtype]) + slack
    signed = torch.copysign(ulp, exact)
    worst = total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for part, wanted in periods(flat, exact):
        ulps = (part - wanted).div_(signed[: part.numel()])
        total = total + ulps.sum()
        worst = torch.maximum(worst, ulps.abs_().max())
    # Stochastic rounding of evenly spread fractions has a variance of 1/6 ulp^2.
    return float(worst), float(total) / sqrt(flat.numel() / 6)
