"""The step as ``torch.library`` ops: ``torch.ops.gru_fast.{reduce_, apply_, rectify_}``.

For code that is compiled, exported or traced; they take plain lists of tensors. :func:`gru_fast.rectify_` calls the
backends directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gru_fast.core.backends import native
from gru_fast.core.checks import check_gamma, check_loss_scale, check_tau
from gru_fast.core.ops import StepArgs, StepTensors, passes_for, run_step

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


def _new_stats(ema: Sequence[Tensor]) -> Tensor:
    return torch.empty(native.NUM_STATS, dtype=torch.float64, device=ema[0].device if ema else "cpu")


def _check_rounding(ema: Sequence[Tensor], rounding_step: Tensor | None) -> None:
    if rounding_step is None and any(e.dtype != torch.float32 for e in ema):
        raise ValueError(
            "rounding_step: expected an int64 tensor of one element beside a 16-bit ema, got None; without it every "
            "call would round with the same bits"
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
        return torch.zeros(native.NUM_STATS, dtype=torch.float64)
    gamma, loss_scale = check_gamma(gamma), check_loss_scale(loss_scale)
    _check_rounding(ema, rounding_step)
    passes = passes_for(ema[0].device)(grads, retain_grads, ema)
    passes.reduce(1.0 - gamma, gamma / loss_scale, seed, rounding_step)
    return passes.stats.to(ema[0].device)


def _apply_op(grads: list[Tensor], ema: list[Tensor], stats: Tensor, tau: float) -> None:
    tau = check_tau(tau)
    if ema:
        passes = passes_for(ema[0].device)(grads, None, ema, ema_is_current=True, stats=stats)
        passes.apply(tau)
        passes.finish(tau)


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
    gamma, tau, loss_scale = check_gamma(gamma), check_tau(tau), check_loss_scale(loss_scale)
    _check_rounding(ema, rounding_step)
    rounding = None if rounding_step is None else {rounding_step.device: rounding_step}
    args = StepArgs(1.0 - gamma, gamma / loss_scale, tau, seed)
    stats = run_step(StepTensors(list(grads), list(retain_grads), list(ema)), args, rounding_steps=rounding)
    return stats if not ema else stats.to(ema[0].device)


_LIBRARY.impl("reduce_", _reduce_op, "CompositeExplicitAutograd")
_LIBRARY.impl("apply_", _apply_op, "CompositeExplicitAutograd")
_LIBRARY.impl("rectify_", _rectify_op, "CompositeExplicitAutograd")


@torch.library.register_fake("gru_fast::reduce_", lib=_LIBRARY)
def _reduce_fake(
    grads: list[Tensor],
    retain_grads: list[Tensor],
    ema: list[Tensor],
    gamma: float,
    loss_scale: float = 1.0,
    seed: int = 0,
    rounding_step: Tensor | None = None,
) -> Tensor:
    return _new_stats(ema)


@torch.library.register_fake("gru_fast::apply_", lib=_LIBRARY)
def _apply_fake(grads: list[Tensor], ema: list[Tensor], stats: Tensor, tau: float) -> None:
    return None


@torch.library.register_fake("gru_fast::rectify_", lib=_LIBRARY)
def _rectify_fake(
    grads: list[Tensor],
    retain_grads: list[Tensor],
    ema: list[Tensor],
    gamma: float,
    tau: float,
    loss_scale: float = 1.0,
    seed: int = 0,
    rounding_step: Tensor | None = None,
) -> Tensor:
    return _new_stats(ema)
