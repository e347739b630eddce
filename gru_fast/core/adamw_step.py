"""One step of AdamW over one or several devices or processes: who moves, the passes, and the sums of U between them.

The same road as a rectified step (backends/parts.py): rows are cut by device and by where their sums are counted, and
what a pass leaves of U is added up before the next one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core import update as sums
from gru_fast.core.backends import warn_of_fallback
from gru_fast.core.backends.adamw import AdamWArgs, AdamWPasses, AdamWRows, Pass
from gru_fast.core.backends.native import NativeAdamW, serves
from gru_fast.core.backends.reference import sum_of_products, widest
from gru_fast.core.backends.reference_adamw import ReferenceAdamW
from gru_fast.core.rules import Decision, Rule, decide, settle
from gru_fast.core.sharded.shards import Shards


@dataclass
class Row:
    """One parameter that moves; tensors are the parts that lie in this process."""

    param: Tensor
    grad: Tensor | None
    state: dict[str, Any]  # "step", "exp_avg", "exp_avg_sq", the latter two as they lie here
    group: dict[str, Any]  # of the optimizer
    ema: Tensor | None = None
    name: str | None = None
    key: int = 0  # names the stream of its rounding bits
    counted_in: int | None = 0  # see Shards


@dataclass
class Options:
    """What a step does besides AdamW; see :class:`gru_fast.optim.AdamW`."""

    feed_back: bool = False
    write_grad: bool = False
    maximize: bool = False
    seed: int = 0
    numel: int = 0


@dataclass
class _Part:
    device: torch.device
    counted_in: int | None
    passes: AdamWPasses
    args: AdamWArgs


@dataclass
class AdamWStep:
    """The rows of a step, and its passes.

    Args:
        rows: in the order of the optimizer's parameters.
        stats: of the rectified step, settled; None: g as it is, and no e.
        shards: how the rows are spread over processes; None: all of it is here.
    """

    rows: list[Row]
    stats: Tensor | None
    options: Options
    shards: Shards | None = None
    _parts: list[_Part] = field(init=False)

    def __post_init__(self) -> None:
        places: dict[tuple[torch.device, int | None], list[Row]] = {}
        for row in self.rows:
            places.setdefault((row.param.device, row.counted_in), []).append(row)
        self._parts = [self._part(device, counted_in, rows) for (device, counted_in), rows in places.items()]

    def plain(self) -> None:
        """M, V and theta."""
        for part in self._parts:
            part.args.update = None
        self._run("step")

    def measured(self, floor: Tensor | None, unless: Tensor | None = None) -> Tensor:
        """The sums of U, with nothing written. ``floor``: rms(D) in W; None: the Euclidean metric.

        Where ``unless``, of one element on the device, is above 0, they are 0, and nothing is read.
        """
        told = [part.args.stats for part in self._parts]
        for part, stats in zip(self._parts, told, strict=True):
            if unless is not None and stats is not None:
                part.args.stats = shut = stats.clone()
                shut[fields.VETOED] += unless[0].to(part.device)
        try:
            return self._sums("sums", floor)
        finally:
            for part, stats in zip(self._parts, told, strict=True):
                part.args.stats = stats

    def rectified(self, floor: Tensor | None, *, all_or_nothing: bool = False) -> Tensor:
        """M, V, and theta by the rectified U; returns the sums of U.

        Where U holds NaN or Inf theta is left as it is; M and V too with ``all_or_nothing``, for which g, M and V are
        read twice.
        """
        update = self._sums("sums" if all_or_nothing else "moments", floor)
        self._run("step" if all_or_nothing else "update")
        return update

    def settle(self, tau: float, rule: Rule | None) -> None:
        """Completes ``stats`` on the device, as :func:`settle_gradient` does on the host. For one part."""
        if not self._parts:  # no g anywhere: nothing to complete
            return
        (part,) = self._parts
        part.passes.settle(part.args, tau, rule)

    def _sums(self, which: Pass, floor: Tensor | None) -> Tensor:
        for part in self._parts:
            part.args.update = torch.zeros(sums.NUM_UPDATE_STATS, dtype=torch.float64, device=part.device)
            part.args.floor = None if floor is None else floor.to(part.device)
        self._run(which)
        return self._add_up()

    def _run(self, which: Pass) -> None:
        for part in self._parts:
            part.passes.run(which, part.args)

    def _add_up(self) -> Tensor:
        """Every part's sums become those of all parts and processes; returns them."""
        updates = [part.args.update for part in self._parts if part.args.update is not None]
        if self.shards is None and len(updates) == 1:
            return updates[0]
        if self.shards is None and not updates:
            return torch.zeros(sums.NUM_UPDATE_STATS, dtype=torch.float64)
        lead = updates[0].device if updates else torch.device("cpu")
        brought: dict[int, Tensor] = {}
        for part, update in zip(self._parts, updates, strict=True):
            if part.counted_in is not None:
                brought[part.counted_in] = brought.get(part.counted_in, 0.0) + update.to(lead)
        if self.shards is None:
            (total,) = brought.values()
            total[sums.LARGEST] = torch.stack([update[sums.LARGEST].to(lead) for update in updates]).max()
        else:
            nothing = torch.zeros(sums.NUM_UPDATE_STATS, dtype=torch.float64, device=lead)
            total = self.shards.add_up(brought, nothing)
            total[sums.LARGEST] = math.nan  # a sum is no maximum
        for update in updates:
            update.copy_(total)
        return total

    def _part(self, device: torch.device, counted_in: int | None, rows: list[Row]) -> _Part:
        options, has_ema = self.options, any(row.ema is not None for row in rows)
        lists = AdamWRows(
            params=[row.param for row in rows],
            grads=[row.grad for row in rows],
            exp_avg=[row.state["exp_avg"] for row in rows],
            exp_avg_sq=[row.state["exp_avg_sq"] for row in rows],
            ema=[row.ema for row in rows] if has_ema else None,
            names=None if any(row.name is None for row in rows) else [str(row.name) for row in rows],
            rounding_keys=[row.key for row in rows],
        )
        warn_of_fallback(device)
        passes = NativeAdamW(lists) if serves(device) else ReferenceAdamW(lists)
        args = AdamWArgs(
            scalars=scalars_of(rows, device),
            stats=None if self.stats is None else self.stats.to(device),
            seed=options.seed,
            numel=options.numel,
            feed_back=options.feed_back,
            write_grad=options.write_grad,
            maximize=options.maximize,
        )
        return _Part(device, counted_in, passes, args)


# ---- scalars ---------------------------------------------------------------------------------------------------------


def scalars_of(rows: Sequence[Row], device: torch.device) -> Tensor:
    """What the passes need to know of each row, (rows, 8); see :class:`~gru_fast.core.backends.adamw.AdamWArgs`.

    On the device where the counts of steps lie there, without a host sync, as a captured graph wants it.
    """
    if device.type == "cpu":
        return _scalars_on_host(rows)
    # MPS has no float64, and no kernels that would want it: the reference reads these on the host.
    wide = widest(device)
    steps = torch.stack([row.state["step"].to(device) for row in rows]).to(wide)
    lr, beta1, beta2, eps, decay = (
        torch.stack([torch.as_tensor(value, dtype=wide).to(device) for value in column])
        if any(isinstance(value, Tensor) for value in column)
        else _constants(column, wide, device)
        for column in zip(*map(_hyperparameters, rows), strict=True)
    )
    return torch.stack(
        [lr, beta1, beta2, eps, decay, 1.0 - beta1**steps, (1.0 - beta2**steps).sqrt(), steps], dim=1
    ).contiguous()


@functools.lru_cache(maxsize=16)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, without waiting for it: they are copied when they are new, which a captured graph must not do."""
    here = torch.tensor(values, dtype=dtype)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def _scalars_on_host(rows: Sequence[Row]) -> Tensor:
    known: dict[tuple[float, ...], int] = {}
    place_of: list[int] = []
    steps = torch.stack([row.state["step"] for row in rows]).tolist() if rows else []
    for row, step in zip(rows, steps, strict=True):
        key = (*map(float, _hyperparameters(row)), step)
        place_of.append(known.setdefault(key, len(known)))
    table = [
        [lr, beta1, beta2, eps, decay, 1.0 - beta1**step, math.sqrt(1.0 - beta2**step), step]
        for lr, beta1, beta2, eps, decay, step in known
    ]
    return torch.tensor(table, dtype=torch.float64).reshape(-1, 8)[place_of]


def _hyperparameters(row: Row) -> tuple[Any, ...]:
    group = row.group
    return group["lr"], *group["betas"], group["eps"], group["weight_decay"]


# ---- the gradient ----------------------------------------------------------------------------------------------------


def settle_gradient(
    stats: Tensor, tau: float, rows: Callable[[], list[Row]], shards: Shards | None, *, rule: Rule | None
) -> None:
    """Completes the statistics of :func:`gru_fast.core.rectify.reduced` as if g had been written, on the host.

    ``rule``: None clips g to ``tau`` alone. ``rows`` makes those with a g or an e.
    """
    values = stats.tolist()
    if rule is None:
        norm = math.sqrt(values[fields.GRAD_NORM_SQ])
        if tau < norm < math.inf:
            stats[fields.ALPHA], stats[fields.CLIPPED], stats[fields.OUT_NORM_SQ] = tau / norm, 1.0, tau * tau
        return
    decision = decide(rule, values, tau)
    if decision.writes:
        values[fields.WRITTEN] = decision.norm_sq
        if decision.measure:
            values[fields.WRITTEN] = _norm_sq(decision, rows(), shards)
    outcome = [values[fields.WRITTEN], *settle(rule, values, tau)]
    stats[fields.OUTCOME] = torch.tensor(outcome, dtype=torch.float64, device=stats.device)


def _norm_sq(decision: Decision, rows: Sequence[Row], shards: Shards | None) -> float:
    """|alpha g + beta e|^2, float64, where it has cancelled in the sums."""
    brought: dict[int, float] = {}
    for row in rows:
        if row.counted_in is not None:
            g = _combined(decision.alpha, decision.beta, row)
            brought[row.counted_in] = brought.get(row.counted_in, 0.0) + sum_of_products(g, g)
    if shards is None:
        return math.fsum(brought.values())
    nothing = torch.zeros(1, dtype=torch.float64)
    return float(shards.add_up({at: nothing + value for at, value in brought.items()}, nothing))


def _combined(alpha: float, beta: float, row: Row) -> Tensor:
    wide = widest(row.param.device)
    out = torch.zeros_like(row.param, dtype=wide) if row.grad is None else row.grad.to(wide) * alpha
    return out if row.ema is None else out.add_(row.ema.to(wide), alpha=beta)


_HOLDS = (1e-37, 1e38)  # coefficients that float32 lanes take


def form_wide_gradients(stats: Tensor, rows: Sequence[Row], *, write_grad: bool) -> Tensor:
    """The statistics as they are, or, where float32 cannot hold what g and e are multiplied with, those of a step with
    nothing to do to g, after ``rows`` have been given the rectified g, formed in float64: in the place of the old one
    with ``write_grad``.
    """
    values = stats.tolist()
    alpha, beta = (values[place] * values[fields.RESCALE] for place in (fields.ALPHA, fields.BETA))
    if all(c == 0.0 or _HOLDS[0] < abs(c) < _HOLDS[1] for c in (alpha, beta)):
        return stats
    for row in rows:
        limit = torch.finfo(row.param.dtype).max
        rectified = _combined(alpha, beta, row).clamp_(-limit, limit).to(row.param.dtype)
        row.grad = row.grad.copy_(rectified) if write_grad and row.grad is not None else rectified
    formed = stats.clone()
    formed[fields.ALPHA], formed[fields.BETA], formed[fields.RESCALE] = 1.0, 0.0, 1.0
    return formed
