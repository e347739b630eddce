"""Which backend serves which device, one step over one or several devices, and the step as ``torch.library`` ops.

The ops ``torch.ops.gru_fast.{reduce_, apply_, rectify_}`` are for code that is compiled, exported or traced; they take
plain lists of tensors. :func:`gru_fast.rectify_` calls the backends directly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gru_fast import native, reference
from gru_fast.checks import check_gamma, check_loss_scale, check_tau
from gru_fast.native import TensorList

NUM_SUMS = 5  # stats[:5] add up over devices after reduce
RETAIN_NONFINITE = 3
VETOED = 4
WRITTEN = 5  # stats[5] adds up after apply
UNWRITTEN = slice(6, 9)  # alpha, beta, rescale
OUT_NORM_SQ = 9
CONFLICT = 10
CLIPPED_DEGENERATE = slice(11, 13)
GRAD_NONFINITE = 13


class Passes(Protocol):
    """One step's tensors on one device: :class:`~gru_fast.native.NativePasses` or the reference."""

    stats: Tensor
    missing_grads: list[int]  # rows whose gradient is None

    def reduce(
        self, keep: float, gain: float, seed: int, rounding_step: Tensor | None, all_or_nothing: bool = False
    ) -> None: ...
    def apply(self, tau: float) -> None: ...
    def finish(self, tau: float) -> None: ...
    def step(
        self,
        keep: float,
        gain: float,
        tau: float,
        seed: int,
        rounding_step: Tensor | None,
        all_or_nothing: bool = False,
    ) -> None: ...


@dataclass(frozen=True)
class StepArgs:
    """The scalars of one step: ``e <- keep * e + gain * r``, then rectify and clip to ``tau``."""

    keep: float
    gain: float
    tau: float = math.inf
    seed: int = 0
    all_or_nothing: bool = False


# nvcc comes from PyPI
MEND_CUDA = "GRU_FAST_CUDA=pip pip install --force-reinstall --no-deps ."
_warned_devices: set[str] = set()


def backend_name(device: torch.device) -> str:
    """``"native"`` or ``"reference"``: what serves tensors of ``device`` in this build."""
    return "native" if native.serves(device) else "reference"


def passes_for(device: torch.device) -> Callable[..., Passes]:
    """The backend of ``device``; warns once per device type when it is not the native one."""
    warn_of_fallback(device)
    return native.NativePasses if native.serves(device) else reference.ReferencePasses


def warn_of_fallback(device: torch.device) -> None:
    """Warns, once per device type, that this build has no kernels for it."""
    if native.serves(device) or device.type in _warned_devices:
        return
    _warned_devices.add(device.type)
    mend = "there are none for this device type yet"
    if device.type == "cuda" and native.HAS_CUDA:
        major, minor = torch.cuda.get_device_capability(device)
        mend = f"build for it, in a checkout: CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={major}{minor} pip install ."
    elif device.type == "cuda":
        mend = f"see `gru-fast info`; to build them, in a checkout: {MEND_CUDA}"
    warnings.warn(
        f"gru_fast has no compiled kernels for {device.type} tensors in this build and uses the slower pure "
        f"PyTorch backend; {mend}",
        RuntimeWarning,
        stacklevel=5,
    )


@dataclass
class StepTensors:
    """The tensors of one step, one entry per parameter."""

    grads: list[Tensor | None]
    retain: list[Tensor | None] | None
    ema: list[Tensor]
    ema_is_current: bool | list[bool] = False
    ids: list[int] | None = None
    names: Sequence[str] | None = None
    devices: list[torch.device] | None = None  # of ema; found out when not given
    known_ema: TensorList | None = None  # ema again, looked at before

    def select(self, rows: Sequence[int]) -> StepTensors:
        """The same for some of the parameters; ids keep naming their place in the whole list."""

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return StepTensors(
            pick(self.grads),
            None if self.retain is None else pick(self.retain),
            pick(self.ema),
            self.ema_is_current if isinstance(self.ema_is_current, bool) else pick(self.ema_is_current),
            list(rows) if self.ids is None else pick(self.ids),
            None if self.names is None else pick(self.names),
        )


def run_step(
    tensors: StepTensors,
    args: StepArgs,
    *,
    rounding_steps: Mapping[torch.device, Tensor] | None = None,
    make_grad: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """One step over all the tensors; returns the statistics on the first tensor's device.

    ``make_grad(row)`` makes the gradient of a parameter that has none, where the projection gives it a value. On the
    CPU that is known before it is called; elsewhere asking would need a host sync, so it is always called.
    """
    devices = tensors.devices or list(dict.fromkeys(e.device for e in tensors.ema))
    if not devices:
        stats = torch.zeros(native.NUM_STATS, dtype=torch.float64)
        stats[6] = stats[8] = 1.0
        return stats
    rounding = {} if rounding_steps is None else rounding_steps
    if len(devices) > 1:
        _make_missing(tensors, make_grad, (row for row, grad in enumerate(tensors.grads) if grad is None))
        return _step_over_devices(tensors, args, devices, rounding)
    device = devices[0]
    passes = _passes(tensors, device)
    if passes.missing_grads and make_grad is not None:
        if device.type == "cpu":
            return _step_with_missing(tensors, args, passes, make_grad, rounding.get(device))
        _make_missing(tensors, make_grad, passes.missing_grads)
        passes = _passes(tensors, device)
    passes.step(args.keep, args.gain, args.tau, args.seed, rounding.get(device), args.all_or_nothing)
    return passes.stats


def run_measure(
    tensors: StepTensors, args: StepArgs, *, rounding_steps: Mapping[torch.device, Tensor] | None = None
) -> Tensor:
    """The first pass of a step alone: e and the sums; statistics as of a step that wrote nothing. No host sync."""
    devices = tensors.devices or list(dict.fromkeys(e.device for e in tensors.ema))
    if not devices:
        return run_step(tensors, args)
    parts = _reduce_over_devices(tensors, args, devices, {} if rounding_steps is None else rounding_steps)
    stats = parts[devices[0]].stats
    dot, ema_norm_sq, grad_norm_sq = stats[0], stats[1], stats[2]
    finite = torch.isfinite(dot) & torch.isfinite(ema_norm_sq) & torch.isfinite(grad_norm_sq)
    conflict = finite & (stats[VETOED] == 0) & (dot < 0) & (ema_norm_sq > 0)
    stats[WRITTEN] = 0.0
    stats[UNWRITTEN] = stats.new_tensor([1.0, 0.0, 1.0])
    stats[OUT_NORM_SQ] = grad_norm_sq
    stats[CONFLICT] = conflict.to(stats.dtype)
    stats[CLIPPED_DEGENERATE] = 0.0
    stats[GRAD_NONFINITE] = (~finite).to(stats.dtype)
    return stats


def _make_missing(tensors: StepTensors, make_grad: Callable[[int], Tensor] | None, rows: Iterable[int]) -> None:
    if make_grad is not None:
        for row in rows:
            tensors.grads[row] = make_grad(row)


def _step_with_missing(
    tensors: StepTensors,
    args: StepArgs,
    passes: Passes,
    make_grad: Callable[[int], Tensor],
    rounding_step: Tensor | None,
) -> Tensor:
    """A step that looks at the sums before it makes the missing gradients."""
    passes.reduce(args.keep, args.gain, args.seed, rounding_step, args.all_or_nothing)
    if _will_project(passes.stats):
        _make_missing(tensors, make_grad, passes.missing_grads)
        tensors.ema_is_current = True
        passes = _passes(tensors, tensors.ema[0].device, passes.stats)
    passes.apply(args.tau)
    passes.finish(args.tau)
    return passes.stats


def _passes(tensors: StepTensors, device: torch.device, stats: Tensor | None = None) -> Passes:
    return passes_for(device)(
        tensors.grads,
        tensors.retain,
        tensors.ema,
        ema_is_current=tensors.ema_is_current,
        ids=tensors.ids,
        names=tensors.names,
        stats=stats,
        known_ema=tensors.known_ema,
    )


def _will_project(stats: Tensor) -> bool:
    dot, ema_norm_sq, grad_norm_sq, _, vetoed = stats[:NUM_SUMS].tolist()
    finite = all(map(math.isfinite, (dot, ema_norm_sq, grad_norm_sq)))
    return finite and not vetoed and dot < 0.0 < ema_norm_sq


def _step_over_devices(
    tensors: StepTensors, args: StepArgs, devices: Sequence[torch.device], rounding: Mapping[torch.device, Tensor]
) -> Tensor:
    """One step whose parameters lie on several devices: their sums meet between the passes."""
    parts = _reduce_over_devices(tensors, args, devices, rounding)
    for part in parts.values():
        part.apply(args.tau)
    _add_up(parts, slice(WRITTEN, WRITTEN + 1))
    for part in parts.values():
        part.finish(args.tau)
    return parts[devices[0]].stats


def _reduce_over_devices(
    tensors: StepTensors, args: StepArgs, devices: Sequence[torch.device], rounding: Mapping[torch.device, Tensor]
) -> dict[torch.device, Passes]:
    """The first pass on every device; each part's sums are those of all."""
    if len(devices) == 1:
        only = _passes(tensors, devices[0])
        only.reduce(args.keep, args.gain, args.seed, rounding.get(devices[0]), args.all_or_nothing)
        return {devices[0]: only}
    rows_of: dict[torch.device, list[int]] = {device: [] for device in devices}
    for row, ema in enumerate(tensors.ema):
        rows_of[ema.device].append(row)
    parts = {device: _passes(tensors.select(rows), device) for device, rows in rows_of.items()}
    if args.all_or_nothing and not _all_finite(tensors):  # no part may write when another one cannot
        for part in parts.values():
            part.stats.zero_()
            part.stats[VETOED] = 1.0
    else:
        for device, part in parts.items():
            part.reduce(args.keep, args.gain, args.seed, rounding.get(device))
    _add_up(parts, slice(0, NUM_SUMS))
    return parts


def _all_finite(tensors: StepTensors) -> bool:
    gradients = [*tensors.grads, *(tensors.retain or [])]
    return all(bool(t.isfinite().all()) for t in gradients if t is not None)


def _add_up(parts: Mapping[torch.device, Passes], fields: slice) -> None:
    """Every part's fields become the sum over the parts (device-to-device copies, in stream order)."""
    lead = next(iter(parts.values())).stats
    total = torch.stack([part.stats[fields].to(lead.device) for part in parts.values()]).sum(0)
    for part in parts.values():
        part.stats[fields] = total.to(part.stats.device)


# ---- torch.library ---------------------------------------------------------------------------------------------------

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
