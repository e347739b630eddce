"""The passes of :mod:`gru_fast.vectors` in plain PyTorch, for any device: fallback and reference, as
:mod:`gru_fast.reference` is of a rectified step. One tensor is worked on at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core.backends.reference import check_tensor, sum_of_products, widest
from gru_fast.core.rules import DEGENERATE, GRU, decide
from gru_fast.core.stats import NUM_STATS


class ReferenceUnit:
    """One unit of TRU. Arguments, methods and errors as :class:`gru_fast.core.backends.native.NativeUnit`."""

    def __init__(
        self,
        params: Sequence[Tensor],
        origin: Sequence[Tensor],
        mean: Sequence[Tensor],
        total: Sequence[Tensor | None] | None = None,
        own: Sequence[Tensor | None] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        missing: list[Tensor | None] = [None] * len(params)
        self._params, self._origin, self._mean = list(params), list(origin), list(mean)
        self._total, self._own = (missing if grads is None else list(grads) for grads in (total, own))
        for row, param in enumerate(params):
            label = f"[{row}]" + ("" if names is None else f' "{names[row]}"')
            check_tensor(param, f"params{label}", param, params[0].device, "itself")
            _check(self._origin[row], f"origin{label}", param, (param.dtype,))
            _check(self._mean[row], f"mean{label}", param, (torch.float32,))
            for name, grad in (("total", self._total[row]), ("own", self._own[row])):
                if grad is not None:
                    _check(grad, f"{name}{label}", param, (param.dtype, torch.float32))
        self.stats = torch.zeros(NUM_STATS, dtype=torch.float64)

    def _task_and_rest(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """T and r of each parameter, float32."""
        for param, origin, total, own in zip(self._params, self._origin, self._total, self._own, strict=True):
            rest = None if total is None else total.float()
            if own is not None:
                rest = -own.float() if rest is None else rest - own.float()
            yield param.float() - origin.float(), rest

    @torch.no_grad()
    def reduce(self) -> None:
        dot = rest_sq = task_sq = 0.0
        for task, rest in self._task_and_rest():
            task_sq += sum_of_products(task, task)
            if rest is not None:
                dot += sum_of_products(task, rest)
                rest_sq += sum_of_products(rest, rest)
        self.stats.zero_()
        self.stats[: fields.RETAIN_NONFINITE] = torch.tensor([dot, rest_sq, task_sq], dtype=torch.float64)

    @torch.no_grad()
    def measure(self) -> None:
        decision = decide(GRU(), self.stats.tolist(), math.inf)
        if decision.measure:
            wide = widest(self._params[0].device)
            rectified = (
                task.to(wide) if rest is None else task.to(wide) + decision.beta * rest.to(wide)
                for task, rest in self._task_and_rest()
            )
            self.stats[fields.WRITTEN] = math.fsum(sum_of_products(part, part) for part in rectified)

    @torch.no_grad()
    def add(self, weight: float, normalize: bool, restore: bool) -> None:
        found = self.stats.tolist()
        task_sq, measured = found[fields.GRAD_NORM_SQ], found[fields.WRITTEN]
        decision = decide(GRU(), found, math.inf)
        norm_sq = 0.0 if decision.nonfinite else measured if decision.measure else decision.norm_sq
        degenerate = not decision.nonfinite and not math.sqrt(norm_sq) > DEGENERATE * math.sqrt(task_sq)
        scale = shift = 0.0
        if not (decision.nonfinite or degenerate):
            scale = weight / math.sqrt(norm_sq) if normalize else weight
            shift = scale * decision.beta
            wide = widest(self._params[0].device)
            for mean, (task, rest) in zip(self._mean, self._task_and_rest(), strict=True):
                added = mean.to(wide).add_(task.to(wide), alpha=scale)
                mean.copy_(added if rest is None or shift == 0.0 else added.add_(rest.to(wide), alpha=shift))
        if restore:
            for param, origin in zip(self._params, self._origin, strict=True):
                param.copy_(origin)
        flags = map(float, (decision.conflict, False, degenerate, decision.nonfinite))
        outcome = torch.tensor([scale, shift, 1.0, norm_sq, *flags], dtype=torch.float64)
        self.stats[fields.ALPHA : fields.GRAD_NONFINITE + 1] = outcome


class ReferenceBlend:
    """``params = x_weight * x + y_weight * y``. Arguments and errors as
    :class:`gru_fast.core.backends.native.NativeBlend`.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        x: tuple[str, Sequence[Tensor], float],
        y: tuple[str, Sequence[Tensor], float],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self._params = params
        (x_name, self._x, self._x_weight), (y_name, self._y, self._y_weight) = x, y
        for row, param in enumerate(params):
            label = f"[{row}]" + ("" if names is None else f' "{names[row]}"')
            check_tensor(param, f"params{label}", param, params[0].device, "itself")
            _check(self._x[row], f"{x_name}{label}", param, (param.dtype,))
            _check(self._y[row], f"{y_name}{label}", param, (param.dtype, torch.float32))

    @torch.no_grad()
    def run(self) -> None:
        """Writes params."""
        for param, x, y in zip(self._params, self._x, self._y, strict=True):
            mixed = x.float() * self._x_weight
            if self._y_weight != 0.0:
                mixed.add_(y.float(), alpha=self._y_weight)
            limit = torch.finfo(param.dtype).max
            param.copy_(mixed if param.dtype == torch.float32 else mixed.clamp_(-limit, limit))


def _check(tensor: Tensor, label: str, param: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    check_tensor(tensor, label, param, param.device, "its parameter")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{label}: expected {' or '.join(map(str, dict.fromkeys(dtypes)))}, got {tensor.dtype}")
