"""Checks of the scalars and lists that every entry point takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def check_gamma(gamma: Any) -> float:
    """``gamma`` as a float in [0, 1], or an error."""
    if isinstance(gamma, bool) or not isinstance(gamma, Real):
        raise TypeError(f"gamma: expected a number in [0, 1], got {type(gamma).__name__}")
    value = float(gamma)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"gamma: expected a number in [0, 1] (the weight of the new retain gradient), got {value}")
    return value


def check_tau(tau: Any) -> float:
    """``tau`` as a float above 0 (infinity for ``None``), or an error."""
    if tau is None:
        return math.inf
    if isinstance(tau, bool) or not isinstance(tau, Real):
        raise TypeError(f"tau: expected a number above 0 or None, got {type(tau).__name__}")
    value = float(tau)
    if not value > 0.0:
        raise ValueError(f"tau: expected a number above 0 or None (no clipping), got {value}")
    return value


def check_loss_scale(scale: Any, name: str = "loss_scale") -> float:
    """``scale`` as a finite float above 0, or an error."""
    value = float(scale)
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return value


def check_share(share: Any) -> float:
    """``share`` as a finite float, or an error."""
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"share: expected a number, got {type(share).__name__}")
    value = float(share)
    if not math.isfinite(value):
        raise ValueError(f"share: expected a finite number, got {value}")
    return value


def check_entries(name: str, values: Any, count: int, expected: str) -> None:
    """Refuses what is no list with one entry per parameter."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: expected {expected}, got {type(values).__name__}")
    if len(values) != count:
        raise ValueError(f"{name}: expected {count} entries, one per parameter, got {len(values)}")


def first_nonfinite(
    what: str, tensors: Sequence[Tensor | None], names: Sequence[str] | None, ids: Sequence[int] | None = None
) -> str | None:
    """What to say of the first of ``tensors`` with NaN or Inf, if there is one. Messages call them by ``ids``."""
    for row, tensor in enumerate(tensors):
        count = 0 if tensor is None else int((~tensor.isfinite()).sum())
        if tensor is not None and count > 0:
            name = "" if names is None else f' "{names[row]}"'
            return (
                f"{what}[{row if ids is None else ids[row]}]{name}: {count} of {tensor.numel()} elements are NaN or "
                "Inf; nothing was changed. Skip this batch, lower the learning rate, or pass error_if_nonfinite=False "
                "to have it skipped"
            )
    return None
