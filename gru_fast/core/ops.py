"""Which backend serves which device, and one step over one or several devices or processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gru_fast.core.backends import native, reference
from gru_fast.core.backends.native import TensorList
from gru_fast.core.sharded.shards import Shards

NUM_SUMS = 5  # stats[:5] add up over devices after reduce
RETAIN_NONFINITE = 3
VETOED = 4
WRITTEN = 5  # stats[5] adds up after apply
ALPHA = 6
RESCALE = 8
OUT_NORM_SQ = 9
CONFLICT = 10
GRAD_NONFINITE = 13
OUTCOME = slice(WRITTEN, GRAD_NONFINITE + 1)  # all that apply and finish write


class Passes(Protocol):
    """One step's tensors on one device: :class:`~gru_fast.core.backends.native.NativePasses` or the reference."""

    stats: Tensor
    missing_grads: list[int]  # rows whose gradient is None

    def reduce(
        self, keep: float, gain: float, seed: int, rounding_step: Tensor | None, all_or_nothing: bool = False
    ) -> None: ...
    def fold(self, keep: float, gain: float, seed: int, rounding_step: Tensor | None) -> None: ...
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
    """The tensors of one step, one entry per parameter; of sharded ones the parts that lie in this process."""

    grads: list[Tensor | None]
    retain: list[Tensor | None] | None
    ema: list[Tensor]
    ema_is_current: bool | list[bool] = False
    ids: list[int] | None = None
    names: Sequence[str] | None = None
    devices: list[torch.device] | None = None  # of ema; found out when not given
    known_ema: TensorList | None = None  # ema again, looked at before
    shards: Shards | None = None  # None: all of it is here
    rounding_keys: list[int] | None = None  # of the rounding bits; by default the ids
    refused: Mapping[torch.device, Tensor] | None = None  # by device, what stream() did not take into e

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
            shards=None if self.shards is None else self.shards.select(rows),
            rounding_keys=None if self.rounding_keys is None else pick(self.rounding_keys),
            refused=self.refused,
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
    rounding = {} if rounding_steps is None else rounding_steps
    if len(devices) > 1 or tensors.shards is not None:
        return _step_in_parts(tensors, args, devices, rounding, make_grad)
    if not devices:
        stats = torch.zeros(native.NUM_STATS, dtype=torch.float64)
        stats[6] = stats[8] = 1.0
        return stats
    device = devices[0]
    passes = _passes(tensors, device)
    if passes.missing_grads and make_grad is not None and device.type != "cpu":
        _make_missing(tensors, make_grad, passes.missing_grads)
        passes = _passes(tensors, device)
    if passes.missing_grads and make_grad is not None:
        passes = _step_with_missing(tensors, args, passes, make_grad, rounding.get(device))
    else:
        passes.step(args.keep, args.gain, args.tau, args.seed, rounding.get(device), args.all_or_nothing)
    if tensors.refused is not None:
        passes.stats[RETAIN_NONFINITE] += _total(tensors.refused.values(), passes.stats.device)
    return passes.stats


def run_measure(
    tensors: StepTensors, args: StepArgs, *, rounding_steps: Mapping[torch.device, Tensor] | None = None
) -> Tensor:
    """The first pass of a step alone: e and the sums; statistics as of a step that wrote nothing. No host sync."""
    devices = tensors.devices or list(dict.fromkeys(e.device for e in tensors.ema))
    if not devices and tensors.shards is None:
        return run_step(tensors, args)
    parts = _reduce_in_parts(tensors, args, devices, {} if rounding_steps is None else rounding_steps)
    stats = parts[0].passes.stats
    dot, ema_norm_sq, grad_norm_sq = stats[0], stats[1], stats[2]
    finite = torch.isfinite(dot) & torch.isfinite(ema_norm_sq) & torch.isfinite(grad_norm_sq)
    conflict = finite & (stats[VETOED] == 0) & (dot < 0) & (ema_norm_sq > 0)
    stats[OUTCOME].zero_()
    stats[ALPHA].fill_(1.0)
    stats[RESCALE].fill_(1.0)
    stats[OUT_NORM_SQ].copy_(grad_norm_sq)
    stats[CONFLICT].copy_(conflict)
    stats[GRAD_NONFINITE].copy_(~finite)
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
) -> Passes:
    """A step that looks at the sums before it makes the missing gradients."""
    passes.reduce(args.keep, args.gain, args.seed, rounding_step, args.all_or_nothing)
    if _will_project(passes.stats):
        _make_missing(tensors, make_grad, passes.missing_grads)
        tensors.ema_is_current = True
        passes = _passes(tensors, tensors.ema[0].device, passes.stats)
    passes.apply(args.tau)
    passes.finish(args.tau)
    return passes


def _passes(tensors: StepTensors, device: torch.device, stats: Tensor | None = None) -> Passes:
    return passes_for(device)(
        tensors.grads,
        tensors.retain,
        tensors.ema,
        ema_is_current=tensors.ema_is_current,
        ids=tensors.ids,
        names=tensors.names,
        rounding_keys=tensors.rounding_keys,
        stats=stats,
        known_ema=tensors.known_ema,
    )


def _will_project(stats: Tensor) -> bool:
    dot, ema_norm_sq, grad_norm_sq, _, vetoed = stats[:NUM_SUMS].tolist()
    finite = all(map(math.isfinite, (dot, ema_norm_sq, grad_norm_sq)))
    return finite and not vetoed and dot < 0.0 < ema_norm_sq


# ---- in parts: several devices, several processes --------------------------------------------------------------------


@dataclass
class _Part:
    """Rows of one step that are worked on together: on one device, their sums counted in the same place."""

    tensors: StepTensors
    passes: Passes
    device: torch.device
    counted_in: int | None  # see Shards; 0 without them


def _step_in_parts(
    tensors: StepTensors,
    args: StepArgs,
    devices: Sequence[torch.device],
    rounding: Mapping[torch.device, Tensor],
    make_grad: Callable[[int], Tensor] | None,
) -> Tensor:
    """One step whose parameters lie on several devices or processes: their sums meet between the passes."""
    missing = [row for row, grad in enumerate(tensors.grads) if grad is None]
    can_wait = all(device.type == "cpu" for device in devices)  # until it is known whether they are needed
    if not can_wait:
        _make_missing(tensors, make_grad, missing)
    parts = _reduce_in_parts(tensors, args, devices, rounding)
    if can_wait and missing and make_grad is not None and _will_project(parts[0].passes.stats):
        _make_missing(tensors, make_grad, missing)
        tensors.ema_is_current = True
        stats = parts[0].passes.stats
        parts = _parts(tensors, devices)
        for part in parts:
            part.passes.stats.copy_(stats)
    for part in parts:
        part.passes.apply(args.tau)
    # What was written is asked for only if something was. Every process knows that, or none does: they see the same
    # sums, and where those lie in host memory is the same for all, so that nobody waits for one who does not come.
    shards = tensors.shards
    if shards is None or not shards.known_to_host or _will_write(parts[0].passes.stats, args.tau):
        _add_up(parts, slice(WRITTEN, WRITTEN + 1), shards)
    for part in parts:
        part.passes.finish(args.tau)
    return parts[0].passes.stats


def _will_write(stats: Tensor, tau: float) -> bool:
    return _will_project(stats) or float(stats[2]) > tau * tau * (1.0 - 1e-9)  # sooner once too often than too seldom


def _reduce_in_parts(
    tensors: StepTensors, args: StepArgs, devices: Sequence[torch.device], rounding: Mapping[torch.device, Tensor]
) -> list[_Part]:
    """The first pass over every part; each part's sums are those of all."""
    parts = _parts(tensors, devices)
    several = len(parts) > 1 or tensors.shards is not None
    if args.all_or_nothing and several:  # no part may write when another one cannot
        veto = _count_nonfinite(parts, tensors.shards)
        parts = [_make_part(_with_veto(part, veto), part.device, part.counted_in) for part in parts]
    _reduce_all(parts, args, rounding)
    if tensors.refused is not None:
        stats = parts[0].passes.stats
        stats[RETAIN_NONFINITE] += _total(tensors.refused.values(), stats.device)
    if several:
        _add_up(parts, slice(0, NUM_SUMS), tensors.shards)
    return parts


def _reduce_all(parts: Sequence[_Part], args: StepArgs, rounding: Mapping[torch.device, Tensor]) -> None:
    last_of = {part.device: part for part in parts}
    for part in parts:
        step = rounding.get(part.device)
        if step is not None and part is not last_of[part.device]:
            step = step.clone()  # counted on once, by the last; copies in other processes round alike
        part.passes.reduce(args.keep, args.gain, args.seed, step, args.all_or_nothing)


def _parts(tensors: StepTensors, devices: Sequence[torch.device]) -> list[_Part]:
    shards = tensors.shards
    if not tensors.ema:  # nothing to work on, but others may wait
        return [_make_part(_with_row(tensors, None, torch.zeros(1)), torch.device("cpu"), None)]
    rows_of: dict[tuple[torch.device, int | None], list[int]] = {}
    for row, ema in enumerate(tensors.ema):
        rows_of.setdefault((ema.device, 0 if shards is None else shards.counted_in[row]), []).append(row)
    if len(rows_of) == 1:
        ((device, counted_in),) = rows_of
        return [_make_part(tensors, device, counted_in)]
    order = sorted(rows_of, key=lambda place: devices.index(place[0]))
    return [_make_part(tensors.select(rows_of[place]), *place) for place in order]


def _make_part(tensors: StepTensors, device: torch.device, counted_in: int | None) -> _Part:
    return _Part(tensors, _passes(tensors, device), device, counted_in)


def _with_row(tensors: StepTensors, retain: Tensor | None, ema: Tensor) -> StepTensors:
    """One row more, which has no gradient."""
    count, given = len(tensors.ema), tensors.ema_is_current
    keys = tensors.rounding_keys
    return StepTensors(
        [*tensors.grads, None],
        [*(tensors.retain or [None] * count), retain],
        [*tensors.ema, ema],
        [*([given] * count if isinstance(given, bool) else given), False],
        [*(range(count) if tensors.ids is None else tensors.ids), count],
        None if tensors.names is None else [*tensors.names, "(none)"],
        shards=tensors.shards,
        rounding_keys=None if keys is None else [*keys, 0],
    )


def _with_veto(part: _Part, veto: Tensor) -> StepTensors:
    """A row more, whose retain gradient is NaN where any part or process has NaN or Inf: an all-or-nothing step then
    leaves every tensor of this part as it is, without the host knowing.
    """
    spoilt = torch.zeros(1, device=part.device).masked_fill_((veto > 0).to(part.device), math.nan)
    return _with_row(part.tensors, spoilt, torch.zeros(1, device=part.device))


def _count_nonfinite(parts: Sequence[_Part], shards: Shards | None) -> Tensor:
    """How many gradients of all parts and processes hold NaN or Inf, float64 of shape (1,)."""
    counts = [_nonfinite_gradients(part.tensors, part.device) for part in parts]
    count = _total(counts, parts[0].device).reshape(1)
    return count if shards is None else shards.add_up({}, count)


def _nonfinite_gradients(tensors: StepTensors, device: torch.device) -> Tensor:
    gradients = [t for t in (*tensors.grads, *(tensors.retain or [])) if t is not None and t.numel() > 0]
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    largest = torch.stack([norm.double() for norm in torch._foreach_norm(gradients, math.inf)])
    return (~largest.isfinite()).sum(dtype=torch.float64)


def _total(values: Iterable[Tensor], device: torch.device) -> Tensor:
    """Their sum, on ``device`` (device-to-device copies, in stream order)."""
    return torch.stack([value.to(device) for value in values]).sum(0)


def _add_up(parts: Sequence[_Part], fields: slice, shards: Shards | None) -> None:
    """Every part's fields become the sum over the parts, and over the processes where there are ``shards``."""
    lead = parts[0].passes.stats.device
    if shards is None:
        total = _total([part.passes.stats[fields] for part in parts], lead)
    else:
        brought: dict[int, Tensor] = {}
        everywhere = torch.zeros_like(parts[0].passes.stats[fields])
        for part in parts:
            own = part.passes.stats[fields].to(lead)
            if part.counted_in is not None:
                brought[part.counted_in] = brought.get(part.counted_in, 0.0) + own
            everywhere[RETAIN_NONFINITE:] += own[RETAIN_NONFINITE:]  # whoever counts the sums, all hear of these
        total = shards.add_up(brought, everywhere)
    for part in parts:
        part.passes.stats[fields] = total.to(part.passes.stats.device)
