"""One step in float64 numpy, straight from the formulas, sharing no code with the package; and what rounding may add.

Vectors are flat float64 arrays over all parameters; a missing gradient is zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Codes = NDArray[np.int8]  # the dtype of each element, as its place in DTYPE_NAMES

DTYPE_NAMES = ("float32", "bfloat16", "float16")

# Largest relative error of rounding to nearest, and the spacing of the subnormals.
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
QUANTUM = {"float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}
LARGEST = {"float32": (2.0 - 2.0**-23) * 2.0**127, "bfloat16": (2.0 - 2.0**-7) * 2.0**127, "float16": 65504.0}
_MIN_EXPONENT = {"float32": -126, "bfloat16": -126, "float16": -14}
_DIGITS = {"float32": 23, "bfloat16": 7, "float16": 10}

SUM_ERROR = 1e-6  # relative, promised of the sums
DEGENERATE = 2.0**-20  # of |g|: what is left of g below this is rounding noise


@dataclass(frozen=True)
class Outcome:
    """d, m, u of one step, the rectified gradient and the flags."""

    grad: Vector
    dot: float
    ema_norm_sq: float
    grad_norm_sq: float
    conflict: bool
    clipped: bool
    degenerate: bool
    alpha: float
    beta: float


def updated_ema(ema: Vector, retain: Vector, gamma: float) -> Vector:
    """(1 - gamma) * e + gamma * r, exact; where r is NaN or infinite the old e."""
    with np.errstate(invalid="ignore"):
        exact = (1.0 - gamma) * ema + gamma * retain
    return np.where(np.isfinite(retain), exact, ema)


def rectify(grad: Vector, stored_ema: Vector, tau: float = math.inf) -> Outcome:
    """The rectified gradient against the e that was stored."""
    dot, ema_norm_sq, grad_norm_sq = (dot_product(a, b) for a, b in _pairs(grad, stored_ema))
    conflict = dot < 0.0 < ema_norm_sq
    beta = -dot / ema_norm_sq if conflict else 0.0
    new = grad + beta * stored_ema
    norm, before = math.sqrt(dot_product(new, new)), math.sqrt(grad_norm_sq)
    degenerate = conflict and norm <= DEGENERATE * before
    clipped = not degenerate and norm > tau
    alpha = 0.0 if degenerate else tau / norm if clipped else 1.0
    return Outcome(
        alpha * new, dot, ema_norm_sq, grad_norm_sq, conflict, clipped, degenerate, alpha=alpha, beta=alpha * beta
    )


def step(grad: Vector, retain: Vector, ema: Vector, gamma: float, tau: float = math.inf) -> tuple[Vector, Outcome]:
    """Both halves, for an e that is stored exactly: the new e, and the rectified gradient."""
    new_ema = updated_ema(ema, retain, gamma)
    return new_ema, rectify(grad, new_ema, tau)


def dot_product(a: Vector, b: Vector) -> float:
    """Good to a few 1e-14 of |a||b| (numpy adds products pairwise)."""
    return float((a * b).sum())


def _pairs(grad: Vector, ema: Vector) -> tuple[tuple[Vector, Vector], ...]:
    return (grad, ema), (ema, ema), (grad, grad)


def grid_neighbours(values: Vector, dtype: str) -> tuple[Vector, Vector]:
    """The numbers of ``dtype`` next to each value, below and above in magnitude (the same where the value is on it)."""
    magnitude = np.abs(values)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, _MIN_EXPONENT[dtype])
    spacing = np.ldexp(1.0, exponent - _DIGITS[dtype])
    below = np.floor(magnitude / spacing) * spacing
    above = np.minimum(np.where(below == magnitude, below, below + spacing), LARGEST[dtype])
    return np.copysign(below, values), np.copysign(above, values)


def ema_error(ema: Vector, retain: Vector, gamma: float, dtypes: Codes) -> Vector:
    """How far a stored e may lie from the exact one: the float32 arithmetic, and for 16 bits one place of the grid."""
    scale = (1.0 - gamma) * np.abs(ema) + gamma * np.abs(np.where(np.isfinite(retain), retain, 0.0))
    # keep, gain, two products and a sum: five roundings to float32
    error = 5.0 * UNIT["float32"] * scale + 3.0 * QUANTUM["float32"]
    sixteen = dtypes != 0
    place = 2.0 * lookup(UNIT, dtypes) * (scale + error) + lookup(QUANTUM, dtypes)
    return np.where(sixteen, error + place, error)


def grad_error(before: Vector, ema: Vector, outcome: Outcome, dtypes: Codes, *, rescaled: bool) -> Vector:
    """How far a written g may lie from the oracle's.

    * the sums are good to 1e-6 of |g||e|, so beta to about 3e-6 |g|/|e| and alpha to 3e-6;
    * near cos = -1 clipping divides by what the projection left, so these errors grow by |g| / left;
    * float32 arithmetic: alpha, beta, two products, a sum;
    * rounding to g's dtype, half a place (one unit);
    * ``rescaled``: rounding went beyond tau, so all of g was scaled once more, by no more than the places of the
      coarsest dtype in the list, and 16-bit elements were cut off, by one place (two units).
    """
    if outcome.alpha == 1.0 and outcome.beta == 0.0 and not rescaled:
        return np.zeros_like(before)
    ratio = math.sqrt(outcome.grad_norm_sq / outcome.ema_norm_sq) if outcome.conflict else 0.0
    inputs = np.abs(before) + ratio * np.abs(ema)
    norm = math.sqrt(dot_product(outcome.grad, outcome.grad))
    amplification = 1.0
    if outcome.clipped and outcome.conflict:
        amplification += math.sqrt(outcome.grad_norm_sq) * outcome.alpha / norm
    error = outcome.alpha * inputs * (3.0 * SUM_ERROR + 6.0 * UNIT["float32"]) * amplification
    units, quanta = lookup(UNIT, dtypes), lookup(QUANTUM, dtypes)
    written = np.abs(outcome.grad) + error
    if not rescaled or norm == 0.0:
        return error + units * written + quanta
    moved = 2.0 * units.max(initial=0.0) + math.sqrt(len(before)) * quanta.max(initial=0.0) / norm
    places = np.where(dtypes != 0, 3.0, 2.0)
    return error + moved * written + places * (units * written + quanta)


def lookup(table: dict[str, float], dtypes: Codes) -> Vector:
    """The value of each element's dtype."""
    return np.array([table[name] for name in DTYPE_NAMES])[dtypes]


def assert_within(found: Vector, expected: Vector, allowed: Vector | float, what: str) -> None:
    """Every element within its allowance, and finite; the message shows the worst one."""
    assert found.shape == expected.shape, f"{what}: {found.shape} elements, expected {expected.shape}"
    error = np.abs(found - expected)
    excess = error / np.maximum(allowed, 1e-300)
    excess = np.where(np.isnan(error), np.inf, np.where(error == 0.0, 0.0, excess))
    if excess.size and excess.max() > 1.0:
        worst = int(excess.argmax())
        bound = float(np.broadcast_to(np.asarray(allowed), found.shape)[worst])
        raise AssertionError(
            f"{what}: worst element {worst} of {found.size}: found {found[worst]!r}, expected {expected[worst]!r}, "
            f"error {error[worst]:.3g} > {bound:.3g}; {int((excess > 1.0).sum())} elements are off"
        )
