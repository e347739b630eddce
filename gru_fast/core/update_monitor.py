"""``measure_update``: whether the step that an optimizer of torch is about to make would raise the retain loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from gru_fast.core import stats as fields
from gru_fast.core.adamw_step import AdamWStep, Options, Row
from gru_fast.core.ema import RetainEMA
from gru_fast.core.result import Rectification
from gru_fast.core.sharded.shards import local


@torch.no_grad()
def measure_update(optimizer: Optimizer, ema: RetainEMA, step: Rectification) -> Rectification:
    """What ``optimizer.step()`` would do to the retain loss: one more pass, which writes nothing.

    Rectifying g keeps ``<g, e> >= 0``; AdamW's step is made of g by momentum, 1/sqrt(V) and decay, and can raise the
    retain loss all the same. Call it between :func:`gru_fast.rectify_` and ``optimizer.step()``, with g as it is to be
    applied::

        step = gru_fast.rectify_(model.parameters(), ema, gamma=0.8)
        gru_fast.optim.measure_update(optimizer, ema, step)
        optimizer.step()
        step.update_cos  # below 0: this step has raised it, to first order

    Args:
        optimizer: ``torch.optim.AdamW``, or ``Adam`` with ``decoupled_weight_decay``; without amsgrad.
        ema: e, of this step.
        step: of this step; its ``update_`` attributes become numbers.

    Returns:
        ``step``.

    Raises:
        TypeError, ValueError: another optimizer, or an option of it that is not known here.
    """
    check_can_measure(optimizer)
    if not isinstance(ema, RetainEMA):
        raise TypeError(f"ema: expected a RetainEMA, whose e is still there after the step, got {type(ema).__name__}")
    ema.expect_one("ema")
    average = ema.average
    stats = step.stats.clone()
    stats[fields.ALPHA], stats[fields.BETA], stats[fields.RESCALE] = 1.0, 0.0, 1.0  # g is what it is to be
    shards = average.sharded.shards
    counted_in: list[int | None] = [0] * len(average.params) if shards is None else shards.counted_in
    grads = average.gradients()
    rows = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            at = average.row_of.get(id(param))
            if at is None or grads[at] is None:
                continue
            state = _next_state(param, optimizer.state.get(param, {}))
            here = local(param.detach())
            rows.append(Row(here, grads[at], state, group, average.tensors[at], counted_in=counted_in[at]))
    numel = sum(param.numel() for param in average.params)
    maximize = bool(optimizer.param_groups[0].get("maximize", False))
    found = AdamWStep(rows, stats, Options(numel=numel, maximize=maximize), shards).measured(None)
    step.note_update(found, rectified=False)
    return step


def check_can_measure(optimizer: Any) -> None:
    """Refuses optimizers whose step is not AdamW's."""
    if not isinstance(optimizer, Adam) or not all(g.get("decoupled_weight_decay") for g in optimizer.param_groups):
        raise TypeError(
            f"optimizer: expected torch.optim.AdamW, whose step can be told beforehand, got {type(optimizer).__name__}"
        )
    if any(group["amsgrad"] for group in optimizer.param_groups):
        raise ValueError("optimizer: expected AdamW without amsgrad, got it with amsgrad")


def _next_state(param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a parameter with the step that comes counted; zeros of one that has not moved yet."""
    here = local(param.detach())
    if not state:
        return {"step": torch.ones(()), **{name: torch.zeros_like(here, dtype=_dtype(here)) for name in _MOMENTS}}
    moments = {name: local(state[name]) for name in _MOMENTS}
    return {"step": state["step"] + 1, **{name: m.to(_dtype(m)) for name, m in moments.items()}}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _dtype(tensor: Tensor) -> torch.dtype:
    """That in which kernels take it: a float16 moment as float32."""
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype
