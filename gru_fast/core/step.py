"""A step in progress: the retain gradients that have come in since the last one, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.average import Average
from gru_fast.core.backends.parts import Work
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.buckets import HeldGradients, kept
from gru_fast.core.checks import check_loss_scale
from gru_fast.core.folding import Exchange, Folding
from gru_fast.core.granularity import Grouping
from gru_fast.core.sharded.shards import local


class StepInProgress:
    """What :meth:`gru_fast.RetainEMA.collect` or :meth:`~gru_fast.RetainEMA.stream` has taken in for one step.

    Attributes:
        retain: collected, one per parameter; None: nothing was.
        gamma: what streamed gradients were folded in with; None: nothing was.
        scale: what the losses were multiplied with; 1 without a loss scale.
        is_scaled: whether there was one.
        refused: by device, how much of the streamed gradients was NaN or Inf and kept out of e.
    """

    def __init__(self, average: Average) -> None:
        self._average = average
        self.retain: list[Tensor | None] | None = None
        self.gamma: float | None = None
        self.scale, self.is_scaled = 1.0, False
        self.refused: dict[torch.device, Tensor] | None = None
        self._folded: list[bool] = []  # which parameters stream() has taken in
        self._share = 0.0  # of the collected gradients in the unlearning gradient, still to be added
        self._inside: str | None = None  # "collect" or "stream" while in the block

    @property
    def is_begun(self) -> bool:
        """Whether anything has come in, or may be coming in just now."""
        return self._inside is not None or self.retain is not None or self.gamma is not None

    def check_outside(self, what: str) -> None:
        """RuntimeError within a ``collect()`` or ``stream()`` block."""
        if self._inside is not None:
            raise RuntimeError(f"{what} inside {self._inside}(): call it after the block")

    # ---- retain gradients in -----------------------------------------------------------------------------------------

    @contextmanager
    def collecting(self, scale: Any, share: float) -> Iterator[None]:
        """Inside, ``.grad`` is r; outside, what it was."""
        if self.retain is not None and share != self._share:
            raise ValueError(
                f"share: expected {self._share} as in the earlier micro-batches of this step, got {share}; give the "
                "difference to the unlearning loss"
            )
        self._enter("collect", scale)
        self._share = share
        params, sharded = self._average.params, self._average.sharded
        retain: list[Tensor | None] = [None] * len(params) if self.retain is None else self.retain
        held = HeldGradients(params)
        for param, r in zip(params, retain, strict=True):
            param.grad = r
        before = sharded.marks()
        try:
            yield
            sharded.check_marks(before, "collect()")
            self.retain = [kept(p.grad, own) for p, own in zip(params, retain, strict=True)]
        except BaseException:
            self.retain = None
            raise
        finally:
            self._inside = None
            held.put_back()

    @contextmanager
    def streaming(self, gamma: float, scale: Any, share: float, exchange: Exchange | None = None) -> Iterator[None]:
        """Inside, every gradient goes into e as backward gives it; outside, ``.grad`` is what it was."""
        if self.gamma is not None and self.gamma != gamma:
            raise ValueError(f"gamma: expected {self.gamma} as earlier in this step, got {gamma}")
        average = self._average
        average.sharded.check_streams()
        self._enter("stream", scale)
        if self.gamma is None:
            self.gamma = gamma
            self._folded = [False] * len(average.params)
            self.refused = {device: torch.zeros((), dtype=torch.float64, device=device) for device in average.devices}
        held = [param.grad for param in average.params]
        args = StepArgs(1.0 - gamma, gamma / self.scale, seed=average.seed)
        fold = Folding(average, self._folded, self.refused or {}, args, share, held, exchange)
        for param in average.params:
            param.grad = None
        hooks = [param.register_post_accumulate_grad_hook(fold) for param in average.params]
        try:
            yield
            fold.flush()
            average.sharded.check_taken(fold.num_sharded, "stream()")
            _check_nothing_came_back(average.params)
        finally:
            self._inside = None
            fold.end()
            for hook in hooks:
                hook.remove()
            for param, grad in zip(average.params, held, strict=True):
                param.grad = grad

    def _enter(self, how: str, scale: Any) -> None:
        if self._inside is not None:
            raise RuntimeError(f"{how}() inside {self._inside}(): leave the first block before entering another")
        started = "collect" if self.retain is not None else "stream" if self.gamma is not None else how
        if started != how:
            raise RuntimeError(f"{how}() after {started}() in one step: use one of them, rectify_ ends the step")
        value, is_scaled = _loss_scale(scale)
        if self.is_begun and (value != self.scale or is_scaled != self.is_scaled):
            raise ValueError(f"scale: expected {self.scale} as in the earlier micro-batches of this step, got {value}")
        self.scale, self.is_scaled = value, is_scaled
        self._inside = how

    # ---- its end -----------------------------------------------------------------------------------------------------

    def check_can_end(self, gamma: float, retain_grads: Sequence[Tensor | None] | None) -> None:
        """Refuses what does not go with how the step was begun.

        Raises:
            RuntimeError: within a block. ValueError: another gamma than streamed with; gradients beside those taken in.
        """
        if self.gamma is not None and self.gamma != gamma:
            raise ValueError(f"gamma: expected {self.gamma} as given to stream(), got {gamma}")
        self.check_outside("rectify_")
        if retain_grads is not None and self.is_begun:
            raise ValueError("retain_grads: expected None, since this step's retain gradients are in the EMA already")

    def work(self, retain_grads: list[Tensor | None] | None, groups: Grouping | None = None) -> Work:
        """The tensors of the step that ends now; rows that can have no effect are left out.

        ``retain_grads``: r where it was handed in, one per parameter. ``groups``: those that a rule is for each of.
        """
        average = self._average
        grads = average.gradients()
        retain, is_current = self.taken(grads, retain_grads)
        if not average.is_kept:
            return self._work_against_r(grads, [None] * len(grads) if retain is None else retain, groups)
        rows = Rows(
            grads, retain, average.tensors, is_current,
            names=average.names, rounding_keys=average.rounding_keys, known_ema=average.known, **_of(groups),
        )  # fmt: skip
        work = Work(rows, average.devices, average.rounding, average.sharded.shards, self.refused, average.make_grad)
        chosen = average.effective(grads)
        return work if chosen is None else _selected(work, chosen)

    def taken(
        self, grads: list[Tensor | None], retain_grads: list[Tensor | None] | None = None
    ) -> tuple[list[Tensor | None] | None, bool | list[bool]]:
        """r of this step, what of it lies here, and whether e holds it already, of all rows or of each.

        g, in ``grads``, gets its share of it. ``retain_grads`` as of :meth:`work`.
        """
        average = self._average
        given = self.retain if retain_grads is None else retain_grads
        retain = None if given is None else average.sharded.parts(given, "retain_grads")
        if average.is_kept and (given is not None or self.gamma is not None):
            average.note(self._folded if given is None else given)
        self._add_share(grads, given, retain)
        return retain, list(self._folded) if self.gamma is not None else given is None

    def _work_against_r(self, grads: list[Tensor | None], retain: list[Tensor | None], groups: Grouping | None) -> Work:
        """The same where x is r itself, which is only read; a missing one counts as zeros."""
        average = self._average
        if not self.is_begun and all(r is None for r in retain) and average.params:
            raise ValueError("retain_grads: expected this step's retain gradients, collected or handed in, got none")
        if self.scale != 1.0:
            _unscale_(retain, self.scale)
        chosen = [
            row for row, pair in enumerate(zip(grads, retain, strict=True)) if any(part is not None for part in pair)
        ]
        x = _filled(retain, grads, average.params)
        rows = Rows(grads, None, x, ema_is_current=True, names=average.names, is_direct=True, **_of(groups))
        work = Work(rows, average.devices, shards=average.sharded.shards, make_grad=average.make_grad)
        return work if len(chosen) == len(grads) else _selected(work, chosen)

    @torch.no_grad()
    def _add_share(
        self, grads: list[Tensor | None], given: list[Tensor | None] | None, retain: list[Tensor | None] | None
    ) -> None:
        """g takes its share of the collected retain gradients, in ``.grad`` and in the list."""
        factor, self._share = self._share / self.scale, 0.0  # once, even if the step fails and is tried again
        if factor == 0.0 or given is None or retain is None:
            return
        there = [(g, r) for g, r in zip(grads, retain, strict=True) if g is not None and r is not None]
        if there:
            torch._foreach_add_([g for g, _ in there], [r for _, r in there], alpha=factor)
        for row, r in enumerate(given):
            if r is not None and grads[row] is None:
                self._average.params[row].grad = share = r * factor
                grads[row] = local(share)


def _selected(work: Work, chosen: list[int]) -> Work:
    """Some of the rows."""
    make_grad = work.make_grad
    return Work(
        work.rows.select(chosen),
        (),
        work.rounding,
        None if work.shards is None else work.shards.select(chosen),
        work.refused,
        None if make_grad is None else lambda row: make_grad(chosen[row]),
    )


def _of(groups: Grouping | None) -> dict[str, Any]:
    return {} if groups is None else {"groups": groups.of_row, "num_groups": len(groups.labels)}


@torch.no_grad()
def _unscale_(retain: Sequence[Tensor | None], scale: float) -> None:
    """r without its loss scale, in place: nobody else has it. Two parameters' gradients may share their memory."""
    own = {(r.device, r.data_ptr()): r for r in retain if r is not None and r.numel() > 0}
    if own:
        torch._foreach_mul_(list(own.values()), 1.0 / scale)


@torch.no_grad()
def _filled(retain: Sequence[Tensor | None], grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    """r with zeros where there is none: all from one buffer for each device and dtype, since they are only read."""
    places = enumerate(zip(retain, grads, params, strict=True))
    missing = {row: local(param) if g is None else g for row, (r, g, param) in places if r is None}
    largest: dict[tuple[torch.device, torch.dtype], int] = {}
    for like in missing.values():
        key = (like.device, like.dtype)
        largest[key] = max(largest.get(key, 0), like.numel())
    zeros = {key: torch.zeros(numel, dtype=key[1], device=key[0]) for key, numel in largest.items()}

    def zeros_like(like: Tensor) -> Tensor:
        return zeros[(like.device, like.dtype)][: like.numel()].view(like.shape)

    return [zeros_like(missing[row]) if r is None else r for row, r in enumerate(retain)]


def _check_nothing_came_back(params: Sequence[Tensor]) -> None:
    if any(param.grad is not None for param in params):
        raise RuntimeError(
            "stream(): expected each gradient once, but something put gradients back after e had taken them in, as "
            "DistributedDataParallel does, which averages them later: use collect(), or stream() within its no_sync() "
            "with exchange=MeanOverProcesses(...) of gru_fast.unlearn.engines.ddp"
        )


def _loss_scale(scale: Any) -> tuple[float, bool]:
    """The number that the loss was multiplied with, and whether there was one."""
    if scale is None:
        return 1.0, False
    return check_loss_scale(scale.get_scale() if hasattr(scale, "get_scale") else scale, "scale"), True
