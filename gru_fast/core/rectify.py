"""``rectify_``: the map of one step of Gradient Rectified Unlearning; ``measure``: its first half, for looking on.

One road: parameters -> what is known of their e (average.py) and of the step in progress (step.py) -> the tensors of
this step, local shards (backends/passes.py) -> the passes, over devices and processes (backends/parts.py), with the
rule between them (rules/) -> what happened (result.py). Against several retain sets: several.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gru_fast.core.average import Average
from gru_fast.core.backends.parts import Work, run_measure, run_step
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.checks import check_entries, check_gamma, check_tau, first_nonfinite
from gru_fast.core.ema import RetainEMA
from gru_fast.core.granularity import Granularity, Grouping, check_granularity
from gru_fast.core.load import core
from gru_fast.core.params import unique_params
from gru_fast.core.result import Rectification
from gru_fast.core.retain_gradient import RetainGradient
from gru_fast.core.rules import GRU, Rule, rule_of
from gru_fast.core.several import check_rule, measure_sets, rectify_sets
from gru_fast.core.step import StepInProgress

_NONFINITE_ELSEWHERE = (
    "NaN or Inf in a retain gradient folded in by stream(), in the EMA, or where the EMA was updated (a loss scale far "
    "below 1?); do not apply this step's gradients"
)
_OR_IN_ANOTHER_PROCESS = "; or in the shards of another process, which then names them"


def rectify_(
    params: Iterable[Tensor],
    ema: RetainEMA | RetainGradient | Sequence[Tensor] | None,
    gamma: float | None = None,
    tau: float | None = None,
    *,
    retain_grads: Sequence[Tensor | None] | None = None,
    error_if_nonfinite: bool = False,
    rule: str | Rule = "gru",
    granularity: Granularity = "global",
) -> Rectification:
    """Rectifies the unlearning gradients in ``param.grad`` in place (paper Eq. 8 to 10, Algorithm 1).

    Over all parameters taken as one vector, with ``g`` the unlearning gradient and ``r`` the retain gradient::

        e <- (1 - gamma) * e + gamma * r
        if <g, e> < 0:   g <- g - (<g, e> / |e|^2) * e      so that the step does not raise the retain loss
        if |g| > tau:    g <- tau * g / |g|

    Afterwards ``<g, e> >= 0`` to rounding and ``|g| <= tau``.

    Parameters may be sharded over processes (DTensor: FSDP2, HSDP, tensor parallel), all or some of them. Then all the
    processes make the call, each works on its shards, and the vector is that of all shards, every element once. What
    crosses the network are five sums in one all-reduce, and |g| as it was written in another where it was. A gradient
    in other placements than its parameter's (a partial sum) is brought into these first.

    Args:
        params: the model's parameters, all of them; their ``.grad`` is g, modified in place. float32, bfloat16 or
            float16, any mix. A missing gradient counts as zeros and is made if the projection gives it a value (on
            CUDA: whenever a RetainEMA has seen a retain gradient of it, and always for a plain list of tensors, since
            knowing would need a sync).
        ema: e, modified in place: a :class:`RetainEMA` (its collected or streamed retain gradients are r; if there
            were none in this step e stays as it is), or a sequence of tensors, one per parameter, float32 or the
            gradient's dtype (a 16-bit one is rounded from a count of calls in this process: to resume bit for bit use
            a RetainEMA). r itself takes its place, and nothing is averaged or kept, with a :class:`RetainGradient`,
            or with ``None`` beside ``retain_grads``.
        gamma: weight of the new retain gradient, in [0, 1]; ``None`` or 1 where nothing is averaged.
        tau: largest norm of g afterwards, > 0; ``None`` or ``inf``: no clipping.
        retain_grads: r for a plain sequence, one per parameter, ``None`` entries counting as zeros. ``None``: e is
            taken as already up to date.
        error_if_nonfinite: raise ``RuntimeError`` naming the culprit when g or r holds NaN or Inf, with nothing
            changed. Otherwise such elements of r are not taken into e, a g that holds any is left untouched, and the
            result says so (``nonfinite``). Costs a pass over the gradients and a host sync; the step is over all the
            same, with its collected retain gradients dropped.
        rule: what is made of g and e: "gru", as above, or another of :mod:`gru_fast.rules`, by its name or with options
            as ``rules.PCGrad(form="mean")``.
        granularity: "global": one decision for all parameters as one vector. "tensor": one for each parameter, "layer":
            one for each layer by the names, or a function of a parameter's name: one for each value. What the rule
            promises then holds in each group, and survives a learning rate per group, but more of g is lost. tau, NaN
            and what is left of the whole go by all of them. On other devices than the CPU it is done by the passes in
            plain PyTorch, which wait for the device, and cannot be captured in a CUDA graph.

    Returns:
        A :class:`Rectification`; reading it synchronises, making it does not.

    Raises:
        TypeError, ValueError: bad arguments, before anything is written; the message names the parameter.
        RuntimeError: see ``error_if_nonfinite``.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> step = rectify_([w], [torch.zeros(2)], gamma=1.0, retain_grads=[torch.tensor([0.0, 2.0])])
    >>> w.grad, step.conflict
    (tensor([1., 0.]), True)
    """
    tau, rule = check_tau(tau), rule_of(rule)
    if rule.elementwise and granularity != "global":
        raise ValueError(f"granularity: expected global with {rule.name}, which decides element by element")
    check_granularity(granularity)
    if isinstance(ema, RetainEMA) and ema.has_several:
        several = check_rule(rule, ema)
        if granularity != "global":
            raise ValueError(f"granularity: expected global with several retain sets, got {granularity!r}")
        of_sets = _check_sets(params, ema, gamma, retain_grads)
        return rectify_sets(ema, of_sets, tau, several, error_if_nonfinite=error_if_nonfinite)
    work, args, groups = _opened(params, ema, gamma, retain_grads, tau, rule, error_if_nonfinite, granularity)
    if error_if_nonfinite and _any_refused(work):
        _ended(ema)
        raise RuntimeError(_nonfinite_elsewhere(work))
    step = Rectification(
        run_step(work, args), rule, is_direct=work.rows.is_direct, groups=_labelled(groups, work.group_stats)
    )
    _ended(ema)
    if error_if_nonfinite and step.nonfinite:
        raise RuntimeError(_nonfinite_message(work))
    return step


def measure(
    params: Iterable[Tensor],
    ema: RetainEMA | RetainGradient | Sequence[Tensor] | None,
    gamma: float | None = None,
    *,
    retain_grads: Sequence[Tensor | None] | None = None,
) -> Rectification:
    """What :func:`rectify_` would look at, with g left as it is: to log how a baseline conflicts with the retain data.

    ``e <- (1 - gamma) * e + gamma * r`` and the sums, as in :func:`rectify_`, which is half of its work; nothing is
    projected or clipped. It ends the step of a RetainEMA in the same way (a ``share`` of the retain gradient is added
    to g). Arguments and errors as there.

    Returns:
        A :class:`Rectification` in which "after" equals "before" and nothing is ``clipped`` or ``degenerate``;
        ``conflict`` says whether ``<g, e> < 0``.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> found = measure([w], [torch.zeros(2)], gamma=1.0, retain_grads=[torch.tensor([0.0, 2.0])])
    >>> w.grad, found.conflict, round(found.angle_after)
    (tensor([ 1., -1.]), True, 135)
    """
    if isinstance(ema, RetainEMA) and ema.has_several:
        return measure_sets(ema, _check_sets(params, ema, gamma, retain_grads))
    work, args, _ = _opened(params, ema, gamma, retain_grads)
    stats = run_measure(work, args)
    _ended(ema)
    return Rectification(stats, is_direct=work.rows.is_direct)


def reduced(
    params: Iterable[Tensor],
    ema: RetainEMA,
    gamma: float,
    *,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """The first half of :func:`rectify_`, e and the sums, for an optimizer that forms the rectified gradient itself.

    Returns the statistics of a step that has written nothing. Arguments, errors and the end of the step as there.
    """
    ema.expect_one("ema")
    work, args, _ = _opened(params, ema, check_gamma(gamma), None, all_or_nothing=error_if_nonfinite)
    if error_if_nonfinite and _any_refused(work):
        ema.end_step()
        raise RuntimeError(_nonfinite_elsewhere(work))
    stats = run_measure(work, args)
    ema.end_step()
    if error_if_nonfinite and Rectification(stats).nonfinite:
        raise RuntimeError(_nonfinite_message(work))
    return stats


def _opened(
    params: Iterable[Tensor],
    ema: RetainEMA | RetainGradient | Sequence[Tensor] | None,
    gamma: float | None,
    retain_grads: Sequence[Tensor | None] | None,
    tau: float = math.inf,
    rule: Rule | None = None,
    all_or_nothing: bool = False,
    granularity: Granularity = "global",
) -> tuple[Work, StepArgs, Grouping | None]:
    """The tensors of the step that ends now, its scalars and its groups. A list becomes what a RetainEMA is made of."""
    gamma = check_gamma(gamma) if _keeps_an_average(ema) else _check_no_gamma(ema, gamma)
    given: list[Tensor | None] | None
    if isinstance(ema, (RetainEMA, RetainGradient)):
        average, pending = ema.average, ema.pending
        check_same_params(params, average, type(ema).__name__)
        if retain_grads is not None:
            check_entries("retain_grads", retain_grads, len(ema), "a list of tensors")
        given = None if retain_grads is None else list(retain_grads)
    else:
        average, given = (
            Average.of_gradients(params, retain_grads) if ema is None else Average.of_list(params, ema, retain_grads)
        )
        pending = StepInProgress(average)
    pending.check_can_end(gamma, given)
    groups = average.grouping(granularity)
    work = pending.work(given, groups)
    gain = gamma / pending.scale
    # Without an average NaN or Inf in any gradient is in the sums: where those come first nothing is written anyway.
    sums_first = not average.is_kept and not (rule and rule.elementwise)
    all_or_nothing = (all_or_nothing or pending.is_scaled) and not sums_first
    return work, StepArgs(1.0 - gamma, gain, tau, rule or GRU(), average.seed, all_or_nothing), groups


def _check_sets(
    params: Iterable[Tensor], ema: RetainEMA, gamma: float | None, retain_grads: Sequence[Tensor | None] | None
) -> float:
    """gamma of a step against several retain sets, whose parameters are ``params``."""
    check_same_params(params, ema.average)
    if retain_grads is not None:
        raise ValueError("retain_grads: expected None with several retain sets; collect(set=) says which each is of")
    return check_gamma(gamma)


def _labelled(groups: Grouping | None, stats: Tensor | None) -> tuple[list[str], Tensor] | None:
    return None if groups is None or stats is None else (groups.labels, stats)


def _keeps_an_average(ema: RetainEMA | RetainGradient | Sequence[Tensor] | None) -> bool:
    return ema is not None and not isinstance(ema, RetainGradient)


def _check_no_gamma(ema: object, gamma: Any) -> float:
    """1, what e would be r itself with."""
    if gamma is None or check_gamma(gamma) == 1.0:
        return 1.0
    if ema is None:
        raise TypeError("ema: expected a RetainEMA or a list of tensors, got NoneType")  # to average in, with a gamma
    raise ValueError(f"gamma: expected None or 1 where r itself is rectified against, got {gamma}; see RetainEMA")


def _ended(ema: RetainEMA | RetainGradient | Sequence[Tensor] | None) -> None:
    if isinstance(ema, (RetainEMA, RetainGradient)):
        ema.end_step()


def check_same_params(params: Iterable[Tensor], average: Average, kind: str = "RetainEMA") -> None:
    """``params`` must hold every parameter of ``average``, and no other that has a gradient."""
    given = params if isinstance(params, (list, Tensor)) else list(params)
    if isinstance(given, list) and core.same_objects(given, average.params):
        return
    unique = unique_params(given).tensors
    known = average.row_of
    for row, param in enumerate(unique):
        if id(param) not in known and (param.grad is not None or param.requires_grad):
            state = "has a gradient" if param.grad is not None else "is trainable"
            raise ValueError(
                f"params[{row}] of shape {tuple(param.shape)}: {state}, but the {kind} does not follow it; make the "
                f"{kind} after choosing what to train"
            )
    found = {id(param) for param in unique}
    missing = [row for row, param in enumerate(average.params) if id(param) not in found]
    if missing:
        first = f'"{average.names[missing[0]]}"' if average.names is not None else f"number {missing[0]}"
        raise ValueError(
            f"params: expected all {len(known)} parameters the {kind} follows, but {len(missing)} are missing, "
            f"first {first}; the step is defined over all of them (for parameter groups pass every group's parameters)"
        )


# ---- NaN and Inf as an error -----------------------------------------------------------------------------------------


def _any_refused(work: Work) -> bool:
    """Whether stream() met NaN or Inf, in any process."""
    if work.refused is None:
        return False
    found = any(map(bool, work.refused.values()))
    return found if work.shards is None else work.shards.any(found)


def _nonfinite_message(work: Work) -> str:
    rows: Rows = work.rows
    retain = rows.ema if rows.is_direct else rows.retain or ()
    for what, values in (("grads", rows.grads), ("retain_grads", retain)):
        found = first_nonfinite(what, values, rows.names, rows.ids)
        if found is not None:
            return found
    return _nonfinite_elsewhere(work)


def _nonfinite_elsewhere(work: Work) -> str:
    return _NONFINITE_ELSEWHERE + ("" if work.shards is None else _OR_IN_ANOTHER_PROCESS)
