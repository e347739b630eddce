"""The compiled passes on the tensors of one device (``gru_fast._core``)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gru_fast.core.load import core

NUM_STATS: int = core.NUM_STATS
HAS_CUDA: bool = core.HAS_CUDA
TensorList = core.TensorList


def serves(device: torch.device) -> bool:
    """Whether this build has kernels for ``device``."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or not core.HAS_CUDA or torch.version.cuda is None:
        return False
    return runs_on(torch.cuda.get_device_capability(device), core.CUDA_ARCHITECTURES)


@functools.cache
def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether code built for ``architectures`` runs on a device of compute ``capability``.

    Machine code for X.Y runs on X.Z with Z >= Y, PTX on everything newer. ``architectures``: as the build reports them,
    e.g. "80,90,120+ptx"; names that are not numbers ("native", "all") are taken to cover the device.

    >>> [runs_on(capability, "80,90,120+ptx") for capability in ((7, 5), (8, 6), (10, 0), (12, 1), (13, 0))]
    [False, True, False, True, True]
    """
    for name in architectures.split(","):
        match = re.match(r"(\d+)(\d)", name)
        if match is None:
            return True
        built = (int(match[1]), int(match[2]))
        is_ptx_only, has_ptx = name.endswith("(ptx)"), "ptx" in name
        if capability >= built and (has_ptx or (capability[0] == built[0] and not is_ptx_only)):
            return True
    return False


_Entry = TypeVar("_Entry", Tensor, "Tensor | None")


class _Copies:
    """Contiguous stand-ins for tensors that are laid out in another way; those that were written go back."""

    def __init__(self) -> None:
        self._written: list[tuple[Tensor, Tensor]] = []

    def of(self, values: Sequence[_Entry], rows: Sequence[int], *, written: bool) -> list[_Entry]:
        """The list with contiguous tensors in ``rows``."""
        out: list[Any] = list(values)
        for row in rows:
            tensor = out[row]
            if tensor is not None and not tensor.is_contiguous():
                out[row] = copy = tensor.detach().contiguous()
                if written:
                    self._written.append((tensor, copy))
        return out

    def write_back(self) -> None:
        with torch.no_grad():
            for original, copy in self._written:
                original.copy_(copy)


class NativePasses:
    """One step's tensors on one device, as a table of pointers.

    ``grads`` and ``retain`` may hold ``None``; ``ema_is_current`` says of all rows, or of each, that e already holds
    this step's value. ``ids``: what messages call the rows (default: their place); ``rounding_keys``: what their
    rounding bits are drawn by (default: the ids). Checks everything before anything is written: ``TypeError`` or
    ``ValueError`` names the culprit. Tensors whose memory layouts differ within a row are worked on as contiguous
    copies and written back.
    """

    def __init__(
        self,
        grads: Sequence[Tensor | None],
        retain: Sequence[Tensor | None] | None,
        ema: Sequence[Tensor],
        *,
        ema_is_current: bool | Sequence[bool] = False,
        ids: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        rounding_keys: Sequence[int] | None = None,
        stats: Tensor | None = None,
        known_ema: TensorList | None = None,
    ) -> None:
        self._copies = _Copies()
        rest = (ema_is_current, ids, names, rounding_keys)
        table = core.Table(grads, retain, ema if known_ema is None else known_ema, *rest)
        if rows := table.mismatched_layouts:
            grads = self._copies.of(grads, rows, written=True)
            ema = self._copies.of(ema, rows, written=True)
            retain = None if retain is None else self._copies.of(retain, rows, written=False)
            table = core.Table(grads, retain, ema, *rest)
        self._table = table
        self._keep_alive = (grads, retain, ema)
        self.missing_grads: list[int] = table.missing_grads
        device = ema[0].device
        self.stats = torch.empty(NUM_STATS, dtype=torch.float64, device=device) if stats is None else stats
        self._scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8, device=device)
        self._threads = torch.get_num_threads()

    def reduce(
        self, keep: float, gain: float, seed: int, rounding_step: Tensor | None, all_or_nothing: bool = False
    ) -> None:
        """``e <- keep * e + gain * r`` and the sums of the step, into ``stats[:5]``."""
        self._table.reduce(self.stats, self._scratch, rounding_step, keep, gain, seed, all_or_nothing, self._threads)
        self._copies.write_back()

    def fold(self, keep: float, gain: float, seed: int, rounding_step: Tensor | None) -> None:
        """``e <- keep * e + gain * r`` alone; whether elements of r were refused, into ``stats[3]``."""
        self._table.fold(self.stats, self._scratch, rounding_step, keep, gain, seed, self._threads)
        self._copies.write_back()

    def apply(self, tau: float) -> None:
        """``g <- alpha * g + beta * e`` as ``stats[:5]`` ask for; |g|^2 as written into ``stats[5]``."""
        self._table.apply(self.stats, self._scratch, tau, self._threads)

    def finish(self, tau: float) -> None:
        """Rescales g where that is needed and completes ``stats``."""
        self._table.finish(self.stats, self._scratch, tau, self._threads)
        self._copies.write_back()

    def step(
        self,
        keep: float,
        gain: float,
        tau: float,
        seed: int,
        rounding_step: Tensor | None,
        all_or_nothing: bool = False,
    ) -> None:
        """:meth:`reduce`, :meth:`apply` and :meth:`finish` in one call."""
        self._table.step(self.stats, self._scratch, rounding_step, keep, gain, tau, seed, all_or_nothing, self._threads)
        self._copies.write_back()


class NativeUnit:
    """The passes of one unit of TRU on one device; see :func:`gru_fast.vectors.accumulate_task_vector_`."""

    def __init__(
        self,
        params: Sequence[Tensor],
        origin: Sequence[Tensor],
        mean: Sequence[Tensor],
        total: Sequence[Tensor | None] | None = None,
        own: Sequence[Tensor | None] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self._copies = _Copies()
        table = core.UnitTable(params, origin, total, own, mean, names)
        if rows := table.mismatched_layouts:
            params = self._copies.of(params, rows, written=True)
            mean = self._copies.of(mean, rows, written=True)
            origin = self._copies.of(origin, rows, written=False)
            total, own = (None if g is None else self._copies.of(g, rows, written=False) for g in (total, own))
            table = core.UnitTable(params, origin, total, own, mean, names)
        self._table = table
        self._keep_alive = (params, origin, mean, total, own)
        device = params[0].device
        self.stats = torch.empty(NUM_STATS, dtype=torch.float64, device=device)
        self._scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8, device=device)
        self._threads = torch.get_num_threads()

    def reduce(self) -> None:
        """The sums of T and r, into ``stats[:3]``."""
        self._table.reduce(self.stats, self._scratch, self._threads)

    def measure(self) -> None:
        """|T~|^2 into ``stats[5]``, where the sums have cancelled."""
        self._table.measure(self.stats, self._scratch, self._threads)

    def add(self, weight: float, normalize: bool, restore: bool) -> None:
        """Adds to mean, restores params, completes ``stats``."""
        self._table.add(self.stats, self._scratch, weight, normalize, restore, self._threads)
        self._copies.write_back()


class NativeBlend:
    """``params = x_weight * x + y_weight * y`` on one device; operands are (name, tensors, weight)."""

    def __init__(
        self,
        params: Sequence[Tensor],
        x: tuple[str, Sequence[Tensor], float],
        y: tuple[str, Sequence[Tensor], float],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self._copies = _Copies()
        (x_name, xs, self._x_weight), (y_name, ys, self._y_weight) = x, y
        self._table = core.BlendTable(params, xs, ys, x_name, y_name, names)
        if rows := self._table.mismatched_layouts:
            params = self._copies.of(params, rows, written=True)
            xs = self._copies.of(xs, rows, written=False)
            ys = self._copies.of(ys, rows, written=False)
            self._table = core.BlendTable(params, xs, ys, x_name, y_name, names)
        self._keep_alive = (params, xs, ys)

    def run(self) -> None:
        """Writes params."""
        self._table.run(self._x_weight, self._y_weight, torch.get_num_threads())
        self._copies.write_back()
