"""Unlearning with control (UWC): how much of an unlearned model a wanted utility allows.

    theta(alpha) = alpha * theta_u + (1 - alpha) * theta_org

Models that gave up different amounts of utility cannot be compared by what they forgot. UWC moves each back towards the
original model until it keeps a given share of its utility (the paper's Tables 9 and 10: 85, 90 and 95 % of the original
Model Utility), with the largest alpha that does.

**What is guaranteed.** Utility need not fall steadily with alpha, and evaluating it is dear, so alpha is found by
bisection. The alpha that is returned was itself evaluated and keeps the target; so does no larger alpha that was
evaluated; and the next larger one that was evaluated, which misses the target, is at most ``resolution`` away. Where
utility falls steadily this is the largest alpha to within ``resolution``. Where it does not, a larger one, between
points that were looked at, may keep the target too: a finer look needs more points (``points`` may hold any).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gru_fast.core.vectors import interpolate_


def largest_alpha(
    utility: Callable[[float], float], target: float, points: dict[float, float], resolution: float = 0.02
) -> float | None:
    """The largest alpha in [0, 1] found whose utility is at least ``target``; see the module on what that means.

    Args:
        utility: of the model at an alpha; called only where ``points`` has none.
        target: the utility to keep.
        points: alpha -> utility, of what was evaluated; added to. Keep it from target to target.
        resolution: the bisection ends when the bracket is this narrow.

    Returns:
        The alpha; 1.0 where the unlearned model itself keeps the target; None where nothing does, not even alpha 0.

    >>> points = {}
    >>> largest_alpha(lambda alpha: 1 - alpha, 0.75, points, resolution=0.25), sorted(points)
    (0.25, [0.0, 0.25, 0.5, 1.0])
    """
    if not (math.isfinite(resolution) and 0 < resolution <= 1):
        raise ValueError(f"resolution: expected a number in (0, 1], got {resolution}")
    if not math.isfinite(target):
        raise ValueError(f"target: expected a finite number, got {target}")
    for alpha in (0.0, 1.0):
        if alpha not in points:
            points[alpha] = _checked(utility(alpha), alpha)
    keeping = [alpha for alpha, value in points.items() if value >= target]
    if not keeping:
        return None
    low = max(keeping)
    if low == 1.0:
        return low
    high = min(alpha for alpha in points if alpha > low)
    while high - low > resolution:
        middle = (low + high) / 2
        points[middle] = _checked(utility(middle), middle)
        if points[middle] >= target:
            low = middle
        else:
            high = middle
    return low


def _checked(value: float | None, alpha: float) -> float:
    if value is None or not math.isfinite(value):
        raise ValueError(f"utility: expected a number at alpha {alpha:g}, got {value}; are sets missing?")
    return float(value)


@contextmanager
def interpolated(model: nn.Module, original: nn.Module) -> Iterator[Callable[[float], None]]:
    """Gives a function that sets ``model``, the unlearned one, to any alpha between it and ``original``.

    Afterwards it is what it was. A second copy of its parameters is held meanwhile.

    Args:
        model, original: models of one architecture; ``original`` is taken to the dtypes and devices of ``model``.

    Raises:
        ValueError: models of different architectures; the message names the first parameter that differs.
    """
    params = dict(model.named_parameters())
    names, out = list(params), list(params.values())
    origin = _matching(params, dict(original.named_parameters()))
    unlearned = [param.detach().clone() for param in out]

    def set_alpha(alpha: float) -> None:
        named: Any = zip(names, out, strict=True)
        interpolate_(named, unlearned, origin, alpha)

    try:
        yield set_alpha
    finally:
        set_alpha(1.0)


def _matching(params: dict[str, nn.Parameter], original: dict[str, nn.Parameter]) -> Sequence[Tensor]:
    odd = sorted({*params} ^ {*original})
    if odd:
        where = "the unlearned model alone" if odd[0] in params else "the original model alone"
        raise ValueError(f'original: expected the parameters of the unlearned model, but {where} has "{odd[0]}"')
    for name, param in params.items():
        if param.shape != original[name].shape:
            raise ValueError(
                f'original: expected "{name}" of shape {tuple(param.shape)} as in the unlearned model, got '
                f"{tuple(original[name].shape)}"
            )
    return [original[name].detach().to(param.device, param.dtype) for name, param in params.items()]
