"""A step against several retain sets: e of each is brought up to date, then one pass takes all dot products.

What :func:`gru_fast.rectify_` and :func:`gru_fast.measure` do where a :class:`gru_fast.RetainEMA` has several vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gru_fast.core.backends import passes_for
from gru_fast.core.backends.parts import count_nonfinite, with_veto
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.sets import SetWork, run_sets
from gru_fast.core.checks import first_nonfinite
from gru_fast.core.ema import RetainEMA
from gru_fast.core.result import Rectification
from gru_fast.core.rules import GEM, Rule, SeveralRule
from gru_fast.core.stats import NUM_STATS, RETAIN_NONFINITE, VETOED

_Retain = list[Tensor | None]
_NONFINITE_ELSEWHERE = (
    "NaN or Inf in a streamed retain gradient, in an average, or in the shards of another process, which then names "
    "them; do not apply this step's gradients"
)


def check_rule(rule: Rule, ema: RetainEMA) -> SeveralRule:
    """``rule``, if it is one for several vectors."""
    if not isinstance(rule, SeveralRule):
        what = f"{ema.sets} retain sets" + (f" and {len(ema.kept)} kept gradients" if ema.kept else "")
        raise ValueError(f"rule: expected gem or subspace with {what}, got {rule.name}, which knows one")
    return rule


def rectify_sets(
    ema: RetainEMA, gamma: float, tau: float, rule: SeveralRule, *, error_if_nonfinite: bool
) -> Rectification:
    """The step. With an ``error_if_nonfinite`` NaN or Inf raises RuntimeError with nothing changed."""
    if error_if_nonfinite and _any_refused(ema):
        ema.end_step()
        raise RuntimeError(_NONFINITE_ELSEWHERE)
    work, retain = _opened(ema, gamma, all_or_nothing=error_if_nonfinite)
    step = _described(run_sets(work, rule, tau), ema, rule)
    ema.end_step()
    if error_if_nonfinite and step.nonfinite:
        raise RuntimeError(_message(work, retain))
    return step


def measure_sets(ema: RetainEMA, gamma: float) -> Rectification:
    """e of every set and the sums, with g left as it is."""
    work, _ = _opened(ema, gamma)
    step = _described(run_sets(work, GEM(), float("inf"), writes=False), ema, GEM())
    ema.end_step()
    return step


def _any_refused(ema: RetainEMA) -> bool:
    """Whether stream() met NaN or Inf, in any process."""
    found = any(bool(value) for pending in ema.pendings for value in (pending.refused or {}).values())
    shards = ema.average.sharded.shards
    return found if shards is None else shards.any(found)


def _described(stats: Tensor, ema: RetainEMA, rule: SeveralRule) -> Rectification:
    return Rectification(stats[:NUM_STATS], rule, sets=(stats, len(ema.vectors)))


def _opened(ema: RetainEMA, gamma: float, *, all_or_nothing: bool = False) -> tuple[SetWork, list[_Retain | None]]:
    """The tensors of the step that ends now, after e of every set has taken its r in; and these."""
    averages, pendings = ema.averages, ema.pendings
    for pending in pendings:
        pending.check_can_end(gamma, None)
    first = averages[0]
    grads = first.gradients()
    retain, current = zip(*(pending.taken(grads) for pending in pendings), strict=True)
    args = [
        StepArgs(1.0 - gamma, gamma / pending.scale, seed=average.seed, all_or_nothing=True)
        for pending, average in zip(pendings, averages, strict=True)
    ]
    veto = None
    if all_or_nothing or any(pending.is_scaled for pending in pendings):
        shards = first.sharded.shards
        veto = count_nonfinite([*grads, *(r for rs in retain for r in rs or ())], first.devices[0], shards)
    told = torch.zeros(2, dtype=torch.float64, device=first.devices[0])
    for place, pending in enumerate(pendings):
        if current[place] is not True:
            rows = Rows(
                [None] * len(grads), retain[place], averages[place].tensors, current[place], names=first.names,
                rounding_keys=averages[place].rounding_keys,
            )  # fmt: skip
            for stats in _folded(rows, args[place], averages[place].rounding, veto):
                told += stats[[RETAIN_NONFINITE, VETOED]].to(told.device)
        for refused in (pending.refused or {}).values():
            told[0] += refused.to(told.device)
    if veto is not None:
        told[1] += veto[0].to(told.device)
    seen = [any(of_row) for of_row in zip(*(average.seen for average in averages), strict=True)]
    missing = [row for row, grad in enumerate(grads) if grad is None and seen[row]]
    work = SetWork(grads, ema.vectors, first.names, first.sharded.shards, told, missing, first.make_grad)
    return work, list(retain)


def _folded(
    rows: Rows, args: StepArgs, rounding: Mapping[torch.device, Tensor], veto: Tensor | None
) -> Iterator[Tensor]:
    """e of one set takes r in, device by device; the statistics of each."""
    current = rows.ema_is_current
    behind: dict[torch.device, list[int]] = {e.device: [] for e in rows.ema}
    for row, e in enumerate(rows.ema):
        if current is False or (current is not True and not current[row]):
            behind[e.device].append(row)
    for device, places in behind.items():
        if not places:  # all was streamed; roundings are counted on as by a pass
            if device in rounding:
                rounding[device].add_(1 if veto is None else (veto == 0.0).to(device))
            continue
        here = rows.select(places)
        if veto is None:
            passes = passes_for(device, here)
            passes.fold(args, rounding.get(device))
        else:  # no set may take anything in where another one, or g, has NaN or Inf
            passes = passes_for(device, with_veto(here, device, veto))
            passes.reduce(args, rounding.get(device))
        yield passes.stats


def _message(work: SetWork, retain: list[_Retain | None]) -> str:
    places = {"grads": work.grads, **{f"retain_grads of set {j}": r for j, r in enumerate(retain) if r is not None}}
    for what, tensors in places.items():
        found = first_nonfinite(what, tensors, work.names)
        if found is not None:
            return found
    return _NONFINITE_ELSEWHERE
