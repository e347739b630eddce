"""One step over one or several devices or processes: their sums meet between the passes.

A step is reduce, apply, finish (:class:`~gru_fast.core.backends.passes.Passes`). Rows on one device of one process go
through all three in one call; else the rows are cut into parts, and what a pass leaves in the statistics is added up
before the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core.backends.choice import passes_for
from gru_fast.core.backends.passes import Groups, Passes, Rows, StepArgs
from gru_fast.core.rules import decide, decide_groups
from gru_fast.core.sharded.shards import Shards
from gru_fast.core.stats import (
    ALPHA,
    CONFLICT,
    GRAD_NONFINITE,
    GROUP_SUMS,
    OUT_NORM_SQ,
    OUTCOME,
    RESCALE,
    RETAIN_NONFINITE,
    SUMS,
    VETOED,
)  # fmt: skip

MakeGrad = Callable[[int], Tensor]


@dataclass
class Work:
    """A step's rows, and where its sums come from and go to.

    Args:
        rows: the tensors.
        devices: of e, each once; found out when not given.
        rounding: by device, the count of steps that 16-bit e are rounded by.
        shards: how the rows are spread over processes; None: all of it is here.
        refused: by device, how much of r was kept out of e before this step (by ``stream()``).
        make_grad: makes the gradient of a row that has none, where the rule gives it a value; None: it is left out. On
            the CPU that is known before it is called; elsewhere asking would need a host sync, so it is always called.
        group_stats: left by a step whose rows have groups: what is known of each.
    """

    rows: Rows
    devices: Sequence[torch.device] = ()
    rounding: Mapping[torch.device, Tensor] = field(default_factory=dict)
    shards: Shards | None = None
    refused: Mapping[torch.device, Tensor] | None = None
    make_grad: MakeGrad | None = None
    group_stats: Tensor | None = None

    def __post_init__(self) -> None:
        self.devices = self.devices or list(dict.fromkeys(e.device for e in self.rows.ema))


def run_step(work: Work, args: StepArgs) -> Tensor:
    """A whole step; returns the statistics, on the first row's device."""
    if args.rule.elementwise:
        return _step_by_elements(work, args)
    if len(work.devices) > 1 or work.shards is not None or (work.devices and work.rows.groups is not None):
        return _step_in_parts(work, args)
    if not work.devices:
        return fields.of_nothing()
    device = work.devices[0]
    passes = passes_for(device, work.rows)
    if passes.missing_grads and work.make_grad is not None:
        if device.type == "cpu":
            return _step_in_parts(work, args, passes)  # which looks at the sums before it makes any
        _make_missing(work, passes.missing_grads)
        passes = passes_for(device, work.rows)
    if work.refused is not None:
        return _step_in_parts(work, args, passes)
    passes.step(args, work.rounding.get(device))
    return passes.stats


def _step_by_elements(work: Work, args: StepArgs) -> Tensor:
    """A step whose rule decides element by element: one pass, unless e is to be updated or NaN ruled out first."""
    if not work.devices and work.shards is None:
        return fields.of_nothing()
    if args.rule.options[0] == 1.0 and work.make_grad is not None:  # x is added where g is zero
        _make_missing(work, [row for row, grad in enumerate(work.rows.grads) if grad is None])
    is_first = work.rows.ema_is_current is True and not args.all_or_nothing and work.refused is None
    parts = _cut(work)
    if not is_first:
        parts = _reduce(work, args, parts)
    for part in parts:
        part.passes.gate(args, is_first=is_first)
    if _several(work, parts):
        told = slice(fields.DOT if is_first else fields.WRITTEN, fields.BETA + 1)
        _add_up(parts, told, work.shards)
    for part in parts:
        part.passes.finish(args)
    return parts[0].passes.stats


def run_measure(work: Work, args: StepArgs) -> Tensor:
    """The first pass of a step alone: e and the sums; statistics as of a step that wrote nothing. No host sync."""
    if not work.devices and work.shards is None:
        return fields.of_nothing()
    stats = _reduce(work, args, _cut(work))[0].passes.stats
    dot, ema_norm_sq, grad_norm_sq = (stats[i] for i in (fields.DOT, fields.EMA_NORM_SQ, fields.GRAD_NORM_SQ))
    finite = torch.isfinite(dot) & torch.isfinite(ema_norm_sq) & torch.isfinite(grad_norm_sq)
    conflict = finite & (stats[fields.VETOED] == 0) & (dot < 0) & (ema_norm_sq > 0)
    stats[OUTCOME].zero_()
    stats[ALPHA].fill_(1.0)
    stats[RESCALE].fill_(1.0)
    stats[OUT_NORM_SQ].copy_(grad_norm_sq)
    stats[CONFLICT].copy_(conflict)
    stats[GRAD_NONFINITE].copy_(~finite)
    return stats


# ---- parts -----------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Rows of one step that are worked on together: on one device, their sums counted in the same place."""

    rows: Rows
    passes: Passes
    device: torch.device
    counted_in: int | None = 0  # see Shards; 0 without them
    groups: Groups | None = field(init=False)

    def __post_init__(self) -> None:
        rows = self.rows
        self.groups = None if rows.groups is None else Groups(rows.groups, rows.num_groups, self.passes.stats.device)


def _step_in_parts(work: Work, args: StepArgs, passes: Passes | None = None) -> Tensor:
    """``passes``: of all the rows, where they are one part and its passes have been made."""
    can_wait = all(device.type == "cpu" for device in work.devices)  # until it is known whether a gradient is needed
    missing = [] if work.make_grad is None else [row for row, grad in enumerate(work.rows.grads) if grad is None]
    if not can_wait:
        _make_missing(work, missing)
    parts = _cut(work) if passes is None else [Part(work.rows, passes, work.devices[0])]
    parts = _reduce(work, args, parts)
    needed = _given_a_value(work, args, parts[0], missing) if can_wait and missing else []
    if needed:
        _make_missing(work, needed)
        work.rows.ema_is_current = True
        before, parts = parts, _cut(work)
        for part, old in zip(parts, before, strict=True):
            part.passes.stats.copy_(old.passes.stats)
            if part.groups is not None and old.groups is not None:
                part.groups.stats.copy_(old.groups.stats)
    for part in parts:
        if part.groups is None:
            part.passes.apply(args)
        else:
            part.passes.apply_groups(args, part.groups)
    # What was written is asked for only if something was. Every process knows that, or none does: they see the same
    # sums, and where those lie in host memory is the same for all, so that nobody waits for one who does not come.
    if _several(work, parts) and (work.shards is None or not work.shards.known_to_host or _may_write(parts, args)):
        _add_up(parts, slice(fields.WRITTEN, fields.WRITTEN + 1), work.shards)
    for part in parts:
        if part.groups is None:
            part.passes.finish(args)
        else:
            part.passes.finish_groups(args, part.groups)
            work.group_stats = part.groups.stats
    return parts[0].passes.stats


def _several(work: Work, parts: Sequence[Part]) -> bool:
    return len(parts) > 1 or work.shards is not None


def _may_write(parts: Sequence[Part], args: StepArgs) -> bool:
    """Sooner once too often than too seldom."""
    found, tau = parts[0].passes.stats.tolist(), args.tau * (1.0 - 1e-9)
    groups = parts[0].groups
    if groups is not None:
        return decide_groups(args.rule, found, groups.stats.tolist(), tau)[0].writes
    return decide(args.rule, found, tau).writes


def _given_a_value(work: Work, args: StepArgs, part: Part, missing: list[int]) -> list[int]:
    """Those of the rows without a gradient that get one."""
    found, of_row = part.passes.stats.tolist(), work.rows.groups
    if part.groups is None or of_row is None:
        return missing if decide(args.rule, found, math.inf).beta != 0.0 else []
    _, groups = decide_groups(args.rule, found, part.groups.stats.tolist(), math.inf)
    return [row for row in missing if groups[of_row[row]].beta != 0.0]


def _make_missing(work: Work, rows: Iterable[int]) -> None:
    if work.make_grad is not None:
        for row in rows:
            work.rows.grads[row] = work.make_grad(row)


def _cut(work: Work) -> list[Part]:
    """The rows by device and by where their sums are counted."""
    rows, shards = work.rows, work.shards
    if not len(rows):  # nothing to work on, but others may wait
        return [_part(_with_row(rows, None, torch.zeros(1)), torch.device("cpu"), None)]
    places: dict[tuple[torch.device, int | None], list[int]] = {}
    for row, ema in enumerate(rows.ema):
        places.setdefault((ema.device, 0 if shards is None else shards.counted_in[row]), []).append(row)
    if len(places) == 1:
        ((device, counted_in),) = places
        return [_part(rows, device, counted_in)]
    order = sorted(places, key=lambda place: work.devices.index(place[0]))
    return [_part(rows.select(places[place]), *place) for place in order]


def _part(rows: Rows, device: torch.device, counted_in: int | None) -> Part:
    return Part(rows, passes_for(device, rows), device, counted_in)


# ---- the first pass --------------------------------------------------------------------------------------------------


def _reduce(work: Work, args: StepArgs, parts: list[Part]) -> list[Part]:
    """The first pass over every part; each part's sums are those of all."""
    several = _several(work, parts)
    if args.all_or_nothing and several:  # no part may write when another one cannot
        given = [t for part in parts for t in (*part.rows.grads, *(part.rows.retain or []))]
        veto = count_nonfinite(given, parts[0].device, work.shards)
        parts = [_part(with_veto(part.rows, part.device, veto), part.device, part.counted_in) for part in parts]
    last_of = {part.device: part for part in parts}
    for part in parts:
        step = work.rounding.get(part.device)
        if step is not None and part is not last_of[part.device]:
            step = step.clone()  # counted on once, by the last; copies in other processes round alike
        part.passes.reduce(args, step)
        if part.groups is not None:
            part.passes.reduce_groups(part.groups)
    if work.refused is not None:
        stats = parts[0].passes.stats
        stats[RETAIN_NONFINITE] += _total(work.refused.values(), stats.device)
    if several:
        _add_up(parts, SUMS, work.shards)
    return parts


def _with_row(rows: Rows, retain: Tensor | None, ema: Tensor) -> Rows:
    """One row more, which has no gradient."""
    count, current, keys = len(rows), rows.ema_is_current, rows.rounding_keys
    return Rows(
        [*rows.grads, None],
        [*(rows.retain or [None] * count), retain],
        [*rows.ema, ema],
        [*([current] * count if isinstance(current, bool) else current), False],
        [*(range(count) if rows.ids is None else rows.ids), count],
        None if rows.names is None else [*rows.names, "(none)"],
        None if keys is None else [*keys, 0],
        is_direct=rows.is_direct,
        groups=None if rows.groups is None else [*rows.groups, 0],
        num_groups=rows.num_groups,
    )


def with_veto(rows: Rows, device: torch.device, veto: Tensor) -> Rows:
    """A row more, whose retain gradient is NaN where any part or process has NaN or Inf: an all-or-nothing step then
    leaves every tensor of these rows as it is, without the host knowing.
    """
    spoilt = torch.zeros(1, device=device).masked_fill_((veto > 0).to(device), math.nan)
    return _with_row(rows, spoilt, torch.zeros(1, device=device))


def count_nonfinite(gradients: Iterable[Tensor | None], device: torch.device, shards: Shards | None) -> Tensor:
    """How many gradients, in all processes, hold NaN or Inf, float64 of shape (1,) on ``device``."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in gradients:
        if tensor is not None and tensor.numel() > 0:
            by_device.setdefault(tensor.device, []).append(tensor)
    counts = [torch.zeros((), dtype=torch.float64, device=device)]
    for tensors in by_device.values():
        largest = torch.stack([norm.double() for norm in torch._foreach_norm(tensors, math.inf)])
        counts.append((~largest.isfinite()).sum(dtype=torch.float64))
    count = _total(counts, device).reshape(1)
    return count if shards is None else shards.add_up({}, count)


# ---- adding up -------------------------------------------------------------------------------------------------------


def _total(values: Iterable[Tensor], device: torch.device) -> Tensor:
    """Their sum, on ``device`` (device-to-device copies, in stream order)."""
    return torch.stack([value.to(device) for value in values]).sum(0)


def _add_up(parts: Sequence[Part], some: slice, shards: Shards | None) -> None:
    """Every part's fields become the sum over the parts, and over the processes where there are ``shards``.

    With the sums go those of the groups.
    """
    lead = parts[0].passes.stats.device
    values = [_values(part, some).to(lead) for part in parts]
    if shards is None:
        total = _total(values, lead)
    else:
        brought: dict[int, Tensor] = {}
        everywhere = torch.zeros_like(values[0])
        heard = slice(RETAIN_NONFINITE, VETOED + 1) if some.start == SUMS.start else slice(0)  # all hear of these
        for part, own in zip(parts, values, strict=True):
            if part.counted_in is not None:
                brought[part.counted_in] = brought.get(part.counted_in, 0.0) + own
            everywhere[heard] += own[heard]
        total = shards.add_up(brought, everywhere)
    for part in parts:
        fields_here = part.passes.stats[some]
        fields_here.copy_(total[: len(fields_here)])
        if part.groups is not None and some == SUMS:
            part.groups.stats[:, GROUP_SUMS] = total[len(fields_here) :].view(-1, 3).to(part.groups.stats.device)


def _values(part: Part, some: slice) -> Tensor:
    """The fields of a part that are added up."""
    own = part.passes.stats[some]
    if part.groups is None or some != SUMS:
        return own
    return torch.cat((own, part.groups.stats[:, GROUP_SUMS].flatten().to(own.device)))
