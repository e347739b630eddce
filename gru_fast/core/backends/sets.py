"""One step beside several vectors in the place of one e, over one or several devices or processes.

A step is reduce, decide, apply, finish. Rows are cut into parts by device and by where their sums are counted; all dot
products of a part come from one pass, meet those of the others, and one write follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core.backends.choice import warn_of_fallback
from gru_fast.core.backends.native import NativeSets, serves
from gru_fast.core.backends.reference_sets import ReferenceSets
from gru_fast.core.rules import SeveralRule
from gru_fast.core.sharded.shards import Shards

_HEARD = 2  # sums that every process tells all others, beside those that count once: retain_nonfinite, vetoed


class SetPasses(Protocol):
    """A step's rows beside several vectors, on one device. Bad tensors raise when it is made.

    ``stats``: float64 of NUM_SET_STATS, as SetStats in csrc/sets.h.
    """

    stats: Tensor

    def reduce(self) -> None:
        """All dot products, into the statistics; everything else there becomes 0."""

    def decide(self, rule: SeveralRule, tau: float) -> None:
        """The coefficients, from those."""

    def apply(self) -> None:
        """``g <- alpha g + sum beta_j x_j``; |g|^2 as written."""

    def finish(self, tau: float) -> None:
        """Rescales g where that is needed, and completes the statistics."""


@dataclass
class SetWork:
    """The tensors of such a step.

    Args:
        grads: g, one per parameter; None counts as zeros.
        vectors: x_j, each one per parameter.
        names: of the parameters, for messages.
        shards: how the rows are spread over processes; None: all of it is here.
        told: float64 of shape (2,): how much of r was kept out of e, and whether the step is vetoed, in this process.
        missing: rows without a g that may get one.
        make_grad: makes it.
    """

    grads: list[Tensor | None]
    vectors: list[list[Tensor]]
    names: Sequence[str] | None
    shards: Shards | None
    told: Tensor
    missing: list[int]
    make_grad: Callable[[int], Tensor]


@dataclass
class _Part:
    passes: SetPasses
    device: torch.device
    counted_in: int | None


def run_sets(work: SetWork, rule: SeveralRule, tau: float, *, writes: bool = True) -> Tensor:
    """The step; returns the statistics. ``writes``: else g stays, and they are of a step that had nothing to do."""
    on_host = all(x.device.type == "cpu" for x in work.vectors[0])
    if writes and not on_host:
        _make_missing(work)
    parts = _cut(work)
    for part in parts:
        part.passes.reduce()
    _add_up(parts, work)
    for part in parts:
        part.passes.decide(rule, tau)
    if not writes:
        return _unwritten(parts[0].passes.stats)
    if on_host and work.missing and bool((parts[0].passes.stats[fields.SET_BETAS] != 0).any()):
        _make_missing(work)
        before, parts = parts, _cut(work)
        for part, old in zip(parts, before, strict=True):
            part.passes.stats.copy_(old.passes.stats)
    for part in parts:
        part.passes.apply()
    if len(parts) > 1 or work.shards is not None:
        _add_up_written(parts, work)
    for part in parts:
        part.passes.finish(tau)
    return parts[0].passes.stats


def _unwritten(stats: Tensor) -> Tensor:
    stats[fields.SET_BETAS].zero_()
    stats[fields.BETA].zero_()
    stats[fields.CLIPPED].zero_()
    stats[fields.ALPHA].fill_(1.0)
    stats[fields.RESCALE].fill_(1.0)
    stats[fields.OUT_NORM_SQ].copy_(stats[fields.GRAD_NORM_SQ])
    return stats


def _make_missing(work: SetWork) -> None:
    for row in work.missing:
        work.grads[row] = work.make_grad(row)
    work.missing = []


def _cut(work: SetWork) -> list[_Part]:
    if not work.grads:  # nothing here, but others may wait
        nothing = [[torch.zeros(1)] for _ in work.vectors]
        return [_Part(_passes([None], nothing, None, torch.device("cpu")), torch.device("cpu"), None)]
    places: dict[tuple[torch.device, int | None], list[int]] = {}
    for row, x in enumerate(work.vectors[0]):
        places.setdefault((x.device, 0 if work.shards is None else work.shards.counted_in[row]), []).append(row)
    parts = []
    for (device, counted_in), rows in places.items():
        grads = [work.grads[row] for row in rows]
        vectors = [[x[row] for row in rows] for x in work.vectors]
        names = None if work.names is None else [work.names[row] for row in rows]
        parts.append(_Part(_passes(grads, vectors, names, device), device, counted_in))
    return parts


def _passes(
    grads: list[Tensor | None], vectors: list[list[Tensor]], names: Sequence[str] | None, device: torch.device
) -> SetPasses:
    warn_of_fallback(device)
    return (NativeSets if serves(device) else ReferenceSets)(grads, vectors, names)


def _add_up(parts: Sequence[_Part], work: SetWork) -> None:
    """Every part's sums become those of all parts and processes."""
    lead = parts[0].passes.stats.device
    told = work.told.to(lead)
    brought = [(part, _sums(part.passes.stats).to(lead)) for part in parts]
    nothing = torch.zeros_like(brought[0][1])
    nothing[-_HEARD:] = told
    total = _total(brought, work.shards, nothing)
    for part in parts:
        stats = part.passes.stats
        stats[fields.GRAD_NORM_SQ].copy_(total[0])
        stats[fields.SET_DOTS.start : fields.SET_GRAM.stop].copy_(total[1:-_HEARD])
        stats[fields.RETAIN_NONFINITE : fields.VETOED + 1].copy_(total[-_HEARD:])


def _sums(stats: Tensor) -> Tensor:
    own = [stats[fields.GRAD_NORM_SQ].reshape(1), stats[fields.SET_DOTS.start : fields.SET_GRAM.stop]]
    return torch.cat([*own, torch.zeros(_HEARD, dtype=stats.dtype, device=stats.device)])


def _total(brought: Sequence[tuple[_Part, Tensor]], shards: Shards | None, everywhere: Tensor) -> Tensor:
    if shards is None:
        return torch.stack([value for _, value in brought]).sum(0) + everywhere
    by_meeting: dict[int, Tensor] = {}
    for part, value in brought:
        if part.counted_in is not None:
            by_meeting[part.counted_in] = by_meeting.get(part.counted_in, 0.0) + value
    return shards.add_up(by_meeting, everywhere)


def _add_up_written(parts: Sequence[_Part], work: SetWork) -> None:
    lead = parts[0].passes.stats.device
    brought = [(part, part.passes.stats[fields.WRITTEN].reshape(1).to(lead)) for part in parts]
    total = _total(brought, work.shards, torch.zeros_like(brought[0][1]))
    for part in parts:
        part.passes.stats[fields.WRITTEN].copy_(total[0])
