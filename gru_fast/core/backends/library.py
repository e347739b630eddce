"""The step as ``torch.library`` ops: ``torch.ops.gru_fast.{reduce_, apply_, rectify_}``.

For code that is compiled, exported or traced; they take plain lists of tensors. :func:`gru_fast.rectify_` calls the
backends directly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.backends import passes_for
from gru_fast.core.backends.parts import Work, run_step
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.checks import check_gamma, check_loss_scale, check_tau
from gru_fast.core.stats import NUM_STATS

_LIBRARY = torch.library.Library("gru_fast", "DEF")
_LIBRARY.define(
    "reduce_(Tensor[] grads, Tensor[] retain_grads, Tensor(a!)[] ema, float gamma, float loss_scale=1.0, int seed=0, "
    "Tensor(b!)? rounding_step=None) -> Tensor"
)
_LIBRARY.define("apply_(Tensor(a!)[] grads, Tensor[] ema, Tensor(b!) stats, float tau) -> ()")
_LIBRARY.define(
    "rectify_(Tensor(a!)[] grads, Tensor[] retain_grads, Tensor(b!)[] ema, float gamma, float tau, "
    "float loss_scale=1.0, int seed=0, Tensor(c!)? rounding_step=None) -> Tensor"
)


def _args(gamma: float, loss_scale: float, tau: float, seed: int) -> StepArgs:
    gamma, loss_scale = check_gamma(gamma), check_loss_scale(loss_scale)
    return StepArgs(1.0 - gamma, gamma / loss_scale, check_tau(tau), seed=seed)


def _check_rounding(ema: Sequence[Tensor], rounding_step: Tensor | None) -> None:
    for row, e in enumerate(ema):
        if e.dtype == torch.float32:
            continue
        if rounding_step is None:
            raise ValueError(
                "rounding_step: expected an int64 tensor of one element beside a 16-bit ema, got None; without it "
                "every call would round with the same bits"
            )
        if e.device != rounding_step.device:
            raise ValueError(
                f"ema[{row}]: expected {e.dtype} on {rounding_step.device}, where rounding_step counts, got it on "
                f"{e.device}; call the op for each device, or use gru_fast.RetainEMA, which keeps a count on each"
            )


def _reduce_op(
    grads: list[Tensor],
    retain_grads: list[Tensor],
    ema: list[Tensor],
    gamma: float,
    loss_scale: float = 1.0,
    seed: int = 0,
    rounding_step: Tensor | None = None,
) -> Tensor:
    if not ema:
        return torch.zeros(NUM_STATS, dtype=torch.float64)
    args = _args(gamma, loss_scale, math.inf, seed)
    _check_rounding(ema, rounding_step)
    passes = passes_for(ema[0].device, Rows(list(grads), list(retain_grads), list(ema)))
    passes.reduce(args, rounding_step)
    return passes.stats.to(ema[0].device)


def _apply_op(grads: list[Tensor], ema: list[Tensor], stats: Tensor, tau: float) -> None:
    args = _args(1.0, 1.0, tau, 0)
    if ema:
        passes = passes_for(ema[0].device, Rows(list(grads), None, list(ema), ema_is_current=True), stats)
        passes.apply(args)
        passes.finish(args)


def _rectify_op(
    grads: list[Tensor],
    retain_grads: list[Tensor],
    ema: list[Tensor],
    gamma: float,
    tau: float,
    loss_scale: float = 1.0,
    seed: int = 0,
    rounding_step: Tensor | None = None,
) -> Tensor:
    args = _args(gamma, loss_scale, tau, seed)
    _check_rounding(ema, rounding_step)
    rounding = {} if rounding_step is None else {rounding_step.device: rounding_step}
    stats = run_step(Work(Rows(list(grads), list(retain_grads), list(ema)), rounding=rounding), args)
    return stats if not ema else stats.to(ema[0].device)


for _name, _op in (("reduce_", _reduce_op), ("apply_", _apply_op), ("rectify_", _rectify_op)):
    _LIBRARY.impl(_name, _op, "CompositeExplicitAutograd")


@torch.library.register_fake("gru_fast::reduce_", lib=_LIBRARY)
@torch.library.register_fake("gru_fast::rectify_", lib=_LIBRARY)
def _statistics(grads: list[Tensor], retain_grads: list[Tensor], ema: list[Tensor], *_: Any, **__: Any) -> Tensor:
    """What both return, for tracing."""
    return torch.empty(NUM_STATS, dtype=torch.float64, device=ema[0].device if ema else "cpu")


@torch.library.register_fake("gru_fast::apply_", lib=_LIBRARY)
def _nothing(*_: Any, **__: Any) -> None:
    """It returns nothing."""
