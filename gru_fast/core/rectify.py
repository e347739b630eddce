"""``rectify_``: the map of one step of Gradient Rectified Unlearning; ``measure``: its first half, for looking on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.checks import check_gamma, check_tau
from gru_fast.core.ema import RetainEMA
from gru_fast.core.load import core
from gru_fast.core.ops import RETAIN_NONFINITE, StepArgs, StepTensors, run_measure, run_step
from gru_fast.core.params import UniqueParams, unique_params
from gru_fast.core.result import Rectification
from gru_fast.core.sharded.shards import check_param, is_sharded, local, placed_like, rounding_key, shards_of

_NONFINITE_ELSEWHERE = (
    "NaN or Inf in a retain gradient folded in by stream(), in the EMA, or where the EMA was updated (a loss scale far "
    "below 1?); do not apply this step's gradients"
)
_OR_IN_ANOTHER_PROCESS = "; or in the shards of another process, which then names them"
_calls = itertools.count()  # rounding steps of plain 16-bit EMA sequences, which keep no count of their own


def rectify_(
    params: Iterable[Tensor],
    ema: RetainEMA | Sequence[Tensor],
    gamma: float,
    tau: float | None = None,
    *,
    retain_grads: Sequence[Tensor | None] | None = None,
    error_if_nonfinite: bool = False,
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
            a RetainEMA).
        gamma: weight of the new retain gradient, in [0, 1].
        tau: largest norm of g afterwards, > 0; ``None`` or ``inf``: no clipping.
        retain_grads: r for a plain sequence, one per parameter, ``None`` entries counting as zeros. ``None``: e is
            taken as already up to date.
        error_if_nonfinite: raise ``RuntimeError`` naming the culprit when g or r holds NaN or Inf, with nothing
            changed. Otherwise such elements of r are not taken into e, a g that holds any is left untouched, and the
            result says so (``nonfinite``). Costs a pass over the gradients and a host sync; the step is over all the
            same, with its collected retain gradients dropped.

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
    gamma, limit = check_gamma(gamma), check_tau(tau)
    if isinstance(ema, RetainEMA):
        return _with_retain_ema(params, ema, gamma, limit, retain_grads, error_if_nonfinite)
    return _with_plain_ema(params, ema, gamma, limit, retain_grads, error_if_nonfinite)


def measure(
    params: Iterable[Tensor],
    ema: RetainEMA | Sequence[Tensor],
    gamma: float,
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
    gamma = check_gamma(gamma)
    if isinstance(ema, RetainEMA):
        return _with_retain_ema(params, ema, gamma, None, retain_grads)
    return _with_plain_ema(params, ema, gamma, None, retain_grads)


def _with_plain_ema(
    params: Iterable[Tensor],
    ema: Sequence[Tensor],
    gamma: float,
    tau: float | None,
    retain_grads: Sequence[Tensor | None] | None,
    error_if_nonfinite: bool = False,
) -> Rectification:
    """``tau`` None: measure only."""
    unique = unique_params(params)
    tensors = _plain_tensors(unique, ema, retain_grads)
    sixteen_bit = {e.device for e in tensors.ema if e.dtype != torch.float32}
    if any(device.type == "cuda" for device in sixteen_bit) and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "ema: expected a RetainEMA while a CUDA graph is captured, got a list with 16-bit tensors: every replay "
            "would round them with the same bits"
        )
    call = next(_calls) if sixteen_bit else 0
    rounding = {device: torch.full((1,), call, dtype=torch.int64, device=device) for device in sixteen_bit}
    args = StepArgs(1.0 - gamma, gamma, math.inf if tau is None else tau, all_or_nothing=error_if_nonfinite)
    if tau is None:
        return Rectification(run_measure(tensors, args, rounding_steps=rounding))
    stats = run_step(tensors, args, rounding_steps=rounding, make_grad=_grad_maker(unique.tensors))
    return _result(stats, error_if_nonfinite, tensors)


def _with_retain_ema(
    params: Iterable[Tensor],
    ema: RetainEMA,
    gamma: float,
    tau: float | None,
    retain_grads: Sequence[Tensor | None] | None,
    error_if_nonfinite: bool = False,
) -> Rectification:
    """``tau`` None: measure only."""
    if ema._stream_gamma is not None and ema._stream_gamma != gamma:
        raise ValueError(f"gamma: expected {ema._stream_gamma} as given to stream(), got {gamma}")
    _check_same_params(params, ema)
    if retain_grads is not None and len(retain_grads) != len(ema):
        raise ValueError(f"retain_grads: expected {len(ema)} entries, one per parameter, got {len(retain_grads)}")
    ema._check_can_end(retain_grads)
    grads = ema._gradients()
    _add_share(ema, grads)
    tensors = _step_tensors(ema, grads, retain_grads)
    limit = math.inf if tau is None else tau
    args = StepArgs(
        1.0 - gamma, gamma / ema._scale, limit, ema._seed, all_or_nothing=error_if_nonfinite or ema._is_scaled
    )
    if error_if_nonfinite and _any_refused(tensors):
        ema._end_step()
        raise RuntimeError(_NONFINITE_ELSEWHERE + ("" if tensors.shards is None else _OR_IN_ANOTHER_PROCESS))
    if tau is None:
        stats = run_measure(tensors, args, rounding_steps=ema._rounding)
    else:
        held = tensors.ids
        owners = ema._params if held is None else [ema._params[row] for row in held]
        stats = run_step(tensors, args, rounding_steps=ema._rounding, make_grad=_grad_maker(owners))
    ema._end_step()
    return _result(stats, error_if_nonfinite, tensors)


@torch.no_grad()
def _add_share(ema: RetainEMA, grads: list[Tensor | None]) -> None:
    """g takes its share of the collected retain gradients, in ``.grad`` and in the list."""
    factor, ema._share = ema._share / ema._scale, 0.0  # once, even if the step fails and is tried again
    if factor == 0.0:
        return
    rows = [(row, r) for row, r in enumerate(ema._retain) if r is not None]
    there = [(local(grad), local(r)) for row, r in rows if (grad := grads[row]) is not None]
    if there:
        torch._foreach_add_([g for g, _ in there], [r for _, r in there], alpha=factor)
    for row, r in rows:
        if grads[row] is None:
            grads[row] = ema._params[row].grad = r * factor


def _step_tensors(ema: RetainEMA, grads: list[Tensor | None], retain: Sequence[Tensor | None] | None) -> StepTensors:
    """The tensors of the step that ends now; rows that can have no effect are left out."""
    ema_is_current: bool | list[bool] = False
    if ema._stream_gamma is not None:
        ema_is_current = list(ema._folded)
    elif retain is None and ema._collected:
        retain = ema._retain
    elif retain is None:
        ema_is_current = True
    given = None if retain is None else list(retain)
    if given is not None and not all(ema._seen):
        ema._seen = [seen or r is not None for seen, r in zip(ema._seen, given, strict=True)]
    if given is not None and retain is not ema._retain:
        ema._sharded.place(given, "retain_grads")
    tensors = StepTensors(
        ema._sharded.here(grads),
        None if given is None else ema._sharded.here(given),
        ema._tensors,
        ema_is_current,
        names=ema._names,
        shards=ema._sharded.shards,
    )
    tensors.devices, tensors.known_ema = ema._devices, ema._known
    if tensors.shards is not None:
        tensors.rounding_keys = ema._rounding_keys
    if ema._fold_stats is not None:
        tensors.refused = {device: stats[RETAIN_NONFINITE] for device, stats in ema._fold_stats.items()}
    if all(ema._seen) or all(g is not None for g in grads):
        return tensors
    return tensors.select([row for row, seen in enumerate(ema._seen) if seen or grads[row] is not None])


def _any_refused(tensors: StepTensors) -> bool:
    """Whether stream() met NaN or Inf, in any process."""
    if tensors.refused is None:
        return False
    found = any(bool(count) for count in tensors.refused.values())
    return found if tensors.shards is None else tensors.shards.any(found)


def _check_same_params(params: Iterable[Tensor], ema: RetainEMA) -> None:
    """``params`` must hold every parameter of the EMA, and no other that has a gradient."""
    given = params if isinstance(params, (list, Tensor)) else list(params)
    if isinstance(given, list) and core.same_objects(given, ema._params):
        return
    unique = unique_params(given).tensors
    known = ema._row_of
    for row, param in enumerate(unique):
        if id(param) not in known and (param.grad is not None or param.requires_grad):
            state = "has a gradient" if param.grad is not None else "is trainable"
            raise ValueError(
                f"params[{row}] of shape {tuple(param.shape)}: {state}, but the RetainEMA does not follow it; make the "
                "RetainEMA after choosing what to train"
            )
    found = {id(param) for param in unique}
    missing = [row for row, param in enumerate(ema._params) if id(param) not in found]
    if missing:
        first = f'"{ema._names[missing[0]]}"' if ema._names is not None else f"number {missing[0]}"
        raise ValueError(
            f"params: expected all {len(ema)} parameters the RetainEMA follows, but {len(missing)} are missing, first "
            f"{first}; the step is defined over all of them (for parameter groups pass every group's parameters)"
        )


def _plain_tensors(
    params: UniqueParams, ema: Sequence[Tensor], retain_grads: Sequence[Tensor | None] | None
) -> StepTensors:
    for what, values in (("ema", ema), ("retain_grads", retain_grads)):
        if values is None and what == "retain_grads":
            continue
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"{what}: expected a RetainEMA or a list of tensors, got {type(values).__name__}")
        if len(values) != params.count:
            raise ValueError(f"{what}: expected {params.count} entries, one per parameter, got {len(values)}")
    for row, param in zip(params.rows, params.tensors, strict=True):
        check_param(param, f"params[{row}]")
        if not isinstance(ema[row], Tensor):
            raise TypeError(f"ema[{row}]: expected a torch.Tensor, got {type(ema[row]).__name__}")
    tensors = StepTensors(
        [param.grad for param in params.tensors],
        None if retain_grads is None else [retain_grads[row] for row in params.rows],
        [ema[row] for row in params.rows],
        ema_is_current=retain_grads is None,
        names=params.names,
        shards=shards_of(params.tensors),
    )
    if tensors.shards is not None:
        _take_parts_here(tensors, params.tensors)
    return tensors


def _take_parts_here(tensors: StepTensors, params: Sequence[Tensor]) -> None:
    """Of sharded parameters the parts that lie in this process; a gradient is brought into their placements first."""
    tensors.rounding_keys = [
        row if ema.dtype == torch.float32 else rounding_key(param, row, len(params))
        for row, (param, ema) in enumerate(zip(params, tensors.ema, strict=True))
    ]
    for row, param in enumerate(params):
        if not is_sharded(param):
            continue
        ema = tensors.ema[row]
        if not is_sharded(ema) or ema.placements != param.placements:  # not moved: it is written
            got = ema.placements if is_sharded(ema) else "a plain tensor"
            raise ValueError(f"ema[{row}]: expected the placements of its parameter, {param.placements}, got {got}")
        tensors.ema[row] = local(ema)
        if param.grad is not None:
            param.grad = placed_like(param.grad, param, f"grads[{row}]")
            tensors.grads[row] = local(param.grad)
        retain = None if tensors.retain is None else tensors.retain[row]
        if tensors.retain is not None and retain is not None:
            tensors.retain[row] = local(placed_like(retain, param, f"retain_grads[{row}]"))


def _grad_maker(owners: Sequence[Tensor]) -> Any:
    def make(row: int) -> Tensor:
        owners[row].grad = grad = torch.zeros_like(owners[row])
        return local(grad)

    return make


def _result(stats: Tensor, error_if_nonfinite: bool, tensors: StepTensors) -> Rectification:
    step = Rectification(stats)
    if error_if_nonfinite and step.nonfinite:
        raise RuntimeError(_nonfinite_message(tensors))
    return step


def _nonfinite_message(tensors: StepTensors) -> str:
    for what, values in (("grads", tensors.grads), ("retain_grads", tensors.retain or ())):
        for row, tensor in enumerate(values):
            count = 0 if tensor is None else int((~tensor.isfinite()).sum())
            if tensor is not None and count > 0:
                name = "" if tensors.names is None else f' "{tensors.names[row]}"'
                index = row if tensors.ids is None else tensors.ids[row]
                return (
                    f"{what}[{index}]{name}: {count} of {tensor.numel()} elements are NaN or Inf; nothing was changed. "
                    "Skip this batch, lower the learning rate, or pass error_if_nonfinite=False to have it skipped"
                )
    return _NONFINITE_ELSEWHERE + ("" if tensors.shards is None else _OR_IN_ANOTHER_PROCESS)
