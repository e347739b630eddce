"""Vectors in the space of a model's parameters: one unit of TRU, a model minus a vector, a model between two.

All parameters are one vector; every function takes lists with one tensor per parameter and works in place. Task vectors
and gradients of the rest are formed inside the kernels and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gru_fast.core import stats
from gru_fast.core.backends import native, reference_vectors, warn_of_fallback
from gru_fast.core.params import check_plain, unique_params
from gru_fast.core.stats import LazyStats, cosine

__all__ = ["TaskVectorStep", "accumulate_task_vector_", "interpolate_", "subtract_"]


class TaskVectorStep(LazyStats):
    """What :func:`accumulate_task_vector_` did with one unit. Lazy: the first attribute that is read synchronises.

    Args:
        stats: float64, in the order of the core's ``Stats``; kept, not copied.
    """

    @property
    def cos(self) -> float:
        """cos(T, r): below 0, unlearning the plain task vector would raise the loss of the rest. NaN without an r."""
        return cosine(self.values[stats.DOT], self.norm, self.norm_rest)

    @property
    def norm(self) -> float:
        """|T| of the plain task vector."""
        return math.sqrt(self.values[stats.GRAD_NORM_SQ])

    @property
    def norm_rest(self) -> float:
        """|r|; 0 without one."""
        return math.sqrt(self.values[stats.EMA_NORM_SQ])

    @property
    def norm_rectified(self) -> float:
        """|T~|, before it was scaled to norm 1."""
        return math.sqrt(self.values[stats.OUT_NORM_SQ])

    @property
    def projected(self) -> bool:
        """<T, r> was negative, and the part of T along r was taken out."""
        return bool(self.values[stats.CONFLICT])

    @property
    def degenerate(self) -> bool:
        """T is 0, or exactly opposite to r: nothing was added to the mean."""
        return bool(self.values[stats.DEGENERATE])

    @property
    def nonfinite(self) -> bool:
        """NaN or Inf in T or r: nothing was added to the mean."""
        return bool(self.values[stats.GRAD_NONFINITE])

    @property
    def skipped(self) -> bool:
        """Nothing was added to the mean."""
        return self.degenerate or self.nonfinite

    def __repr__(self) -> str:
        said = " ".join(flag for flag in ("projected", "degenerate", "nonfinite") if getattr(self, flag)) or "as it was"
        return f"TaskVectorStep(cos={self.cos:.4f}, norm {self.norm:.4g} -> {self.norm_rectified:.4g}, {said})"


def accumulate_task_vector_(
    params: Iterable[Any],
    origin: Sequence[Tensor],
    mean: Sequence[Tensor],
    *,
    total: Sequence[Tensor | None] | None = None,
    own: Sequence[Tensor | None] | None = None,
    weight: float = 1.0,
    normalize: bool = True,
    restore: bool = True,
) -> TaskVectorStep:
    """Rectifies the task vector of one unit and adds it to the mean (task vector rectified unlearning, TRU).

    Over all parameters taken as one vector, ``params`` holding theta_s, which has learned unit s::

        T  = params - origin                    the task vector
        r  = total - own                        gradient of the loss of all units but s, at theta_org
        T~ = T + (max(-<T, r>, 0) / |r|^2) * r  so that <T~, r> >= 0
        mean += weight * T~ / |T~|
        params = origin

    **Which formula.** The model is to become theta_org - stg * mean, so to first order the loss of the rest changes by
    -stg * <T~, r>, and "it must not rise" asks for <T~, r> >= 0. The paper's Eq. 12, read with its own
    [x]_- = max(-x, 0), gives that; the constraint printed as Eq. 11, <-T~, r> >= 0, has the other sign: it would take
    out what protects the rest. Its last factor must be r. Tests fail under the other sign.

    Two passes over memory: a reduce of params, origin, total and own to three sums, and an add, which reads the
    gradients again only after a projection. T and r are never stored. CUDA: no host sync.

    Args:
        params: theta_s, tensors or ``(name, tensor)`` pairs: float32, bfloat16 or float16, any mix, any devices.
        origin: theta_org, one per parameter, of its dtype, shape and device; read.
        mean: float32, one per parameter; added to.
        total, own: gradients, one per parameter, float32 or the parameter's dtype; ``None``, as an entry or as the
            list, counts as zeros. Read. Scale does not matter, as long as it is that of both.
        weight: finite.
        normalize: scale T~ to norm 1 (one norm over all parameters); off: add ``weight * T~``.
        restore: take params back to theta_org, in the same pass.

    Returns:
        A :class:`TaskVectorStep`. Where it says ``skipped``, mean is what it was; params are restored all the same.

    Raises:
        TypeError, ValueError: before anything is written; the message names the parameter.

    >>> w, mean = torch.tensor([2.0, 1.0]), [torch.zeros(2)]
    >>> step = accumulate_task_vector_([w], [torch.zeros(2)], mean, total=[torch.tensor([-1.0, 0.0])])
    >>> mean, w, step.projected
    ([tensor([0., 1.])], tensor([0., 0.]), True)
    """
    _check_finite("weight", weight)
    named = _Named(params)
    lists = {"origin": origin, "mean": mean} | {
        name: grads for name, grads in (("total", total), ("own", own)) if grads is not None
    }
    named.check_lengths(lists)
    parts = {device: named.unit(device, lists, rows) for device, rows in named.rows_by_device().items()}
    for part in parts.values():
        part.reduce()
    _add_up(parts, slice(stats.DOT, stats.GRAD_NORM_SQ + 1))
    for part in parts.values():
        part.measure()
    _add_up(parts, slice(stats.WRITTEN, stats.WRITTEN + 1))
    for part in parts.values():
        part.add(weight, normalize, restore)
    return TaskVectorStep(next(iter(parts.values())).stats)


def subtract_(params: Iterable[Any], origin: Sequence[Tensor], vector: Sequence[Tensor], strength: float) -> None:
    """``params = origin - strength * vector``: a model without what a task vector stands for.

    Args:
        params: written; tensors or ``(name, tensor)`` pairs: float32, bfloat16 or float16, any mix, any devices.
        origin: one per parameter, of its dtype, shape and device; read.
        vector: one per parameter, float32 or its dtype; read.
        strength: finite; the paper's stg.

    Raises:
        TypeError, ValueError: before anything is written; the message names the parameter.

    >>> w = torch.zeros(2)
    >>> subtract_([w], [torch.ones(2)], [torch.tensor([0.0, 2.0])], 0.5)
    >>> w
    tensor([1., 0.])
    """
    _check_finite("strength", strength)
    _blend(params, ("origin", origin, 1.0), ("vector", vector, -strength))


def interpolate_(params: Iterable[Any], unlearned: Sequence[Tensor], origin: Sequence[Tensor], alpha: float) -> None:
    """``params = alpha * unlearned + (1 - alpha) * origin`` (UWC); exactly one of them at alpha 1 and 0.

    Args:
        params: written; tensors or ``(name, tensor)`` pairs: float32, bfloat16 or float16, any mix, any devices.
        unlearned, origin: one per parameter, of its dtype, shape and device; read.
        alpha: finite; beyond 0 and 1 it extrapolates.

    Raises:
        TypeError, ValueError: before anything is written; the message names the parameter.

    >>> w = torch.zeros(1)
    >>> interpolate_([w], [torch.tensor([4.0])], [torch.tensor([0.0])], 0.25)
    >>> w
    tensor([1.])
    """
    _check_finite("alpha", alpha)
    first, second = ("unlearned", unlearned, alpha), ("origin", origin, 1.0 - alpha)
    # Whatever weighs nothing must not be read, NaN for instance: `_blend` leaves its second operand out.
    _blend(params, *((second, first) if alpha == 0.0 else (first, second)))


# ---- lists -----------------------------------------------------------------------------------------------------------

_Operand = tuple[str, Sequence[Tensor], float]


class _Unit(Protocol):
    """A unit's tensors on one device: :class:`~gru_fast.core.backends.native.NativeUnit` or the reference."""

    stats: Tensor

    def reduce(self) -> None: ...
    def measure(self) -> None: ...
    def add(self, weight: float, normalize: bool, restore: bool) -> None: ...


class _Named:
    """Parameters, each once, with their names."""

    def __init__(self, params: Iterable[Any]) -> None:
        self._unique = unique_params(params)
        self.tensors = self._unique.tensors
        for row, param in enumerate(self.tensors):
            check_plain(
                param, f"params[{row}]" + ("" if self._unique.names is None else f' "{self._unique.names[row]}"')
            )

    def check_lengths(self, lists: dict[str, Sequence[Tensor]] | dict[str, Any]) -> None:
        """Refuses lists that have not one entry for each parameter that was given, and an empty list of parameters."""
        if not self.tensors:
            raise ValueError("params: expected at least one parameter, got none (was a generator used up before?)")
        for name, values in lists.items():
            if len(values) != self._unique.count:
                raise ValueError(f"{name}: expected {self._unique.count} entries, one per parameter, got {len(values)}")

    def rows_by_device(self) -> dict[torch.device, list[int]]:
        """Places in ``tensors``."""
        found: dict[torch.device, list[int]] = {}
        for row, param in enumerate(self.tensors):
            found.setdefault(param.device, []).append(row)
        return found

    def pick(self, values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """The entries of a list that belong to some of ``tensors``."""
        return [values[self._unique.rows[row]] for row in rows]

    def names(self, rows: Sequence[int]) -> list[str] | None:
        return None if self._unique.names is None else [self._unique.names[row] for row in rows]

    def unit(self, device: torch.device, lists: dict[str, Any], rows: Sequence[int]) -> _Unit:
        """The pass of one device."""
        make: Callable[..., _Unit] = native.NativeUnit if native.serves(device) else reference_vectors.ReferenceUnit
        warn_of_fallback(device)
        chosen = {name: self.pick(values, rows) for name, values in lists.items()}
        return make([self.tensors[row] for row in rows], names=self.names(rows), **chosen)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def _blend(params: Iterable[Any], x: _Operand, y: _Operand) -> None:
    named = _Named(params)
    named.check_lengths({x[0]: x[1], y[0]: y[1]})
    jobs = []
    for device, rows in named.rows_by_device().items():
        warn_of_fallback(device)
        blend = native.NativeBlend if native.serves(device) else reference_vectors.ReferenceBlend
        tensors = [named.tensors[row] for row in rows]
        operands = [(name, named.pick(values, rows), weight) for name, values, weight in (x, y)]
        jobs.append(blend(tensors, *operands, names=named.names(rows)))  # checked before anything is written
    for job in jobs:
        job.run()


def _add_up(parts: dict[torch.device, _Unit], fields: slice) -> None:
    """Every part's fields become the sum over the parts."""
    if len(parts) == 1:
        return
    lead = next(iter(parts.values())).stats
    summed = torch.stack([part.stats[fields].to(lead.device) for part in parts.values()]).sum(0)
    for part in parts.values():
        part.stats[fields] = summed.to(part.stats.device)
