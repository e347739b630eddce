"""The compiled passes on the tensors of one device (``gru_fast._core``)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from gru_fast._load import core

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


class NativePasses:
    """One step's tensors on one device, as a table of pointers.

    ``grads`` and ``retain`` may hold ``None``; ``ema_is_current`` says of all rows, or of each, that e already holds
    this step's value. Checks everything before anything is written: ``TypeError`` or ``ValueError`` names the culprit.
    Tensors whose memory layouts differ within a row are worked on as contiguous copies and written back.
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
        stats: Tensor | None = None,
        known_ema: TensorList | None = None,
    ) -> None:
        self._write_back: list[tuple[Tensor, Tensor]] = []
        table = core.Table(grads, retain, ema if known_ema is None else known_ema, ema_is_current, ids, names)
        if table.mismatched_layouts:
            grads, retain, ema = self._copies(table.mismatched_layouts, grads, retain, ema)
            table = core.Table(grads, retain, ema, ema_is_current, ids, names)
        self._table = table
        self._keep_alive = (grads, retain, ema)
        self.missing_grads: list[int] = table.missing_grads
        device = ema[0].device
        self.stats = torch.empty(NUM_STATS, dtype=torch.float64, device=device) if stats is None else stats
        self._scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8, device=device)
        self._threads = torch.get_num_threads()

    def _copies(
        self,
        rows: Sequence[int],
        grads: Sequence[Tensor | None],
        retain: Sequence[Tensor | None] | None,
        ema: Sequence[Tensor],
    ) -> tuple[list[Tensor | None], list[Tensor | None] | None, list[Tensor]]:
        new_grads, new_ema = list(grads), list(ema)
        new_retain = None if retain is None else list(retain)
        for row in rows:
            if (grad := new_grads[row]) is not None:
                new_grads[row] = self._contiguous(grad)
            new_ema[row] = self._contiguous(new_ema[row])
            if new_retain is not None and (tensor := new_retain[row]) is not None:
                new_retain[row] = tensor.detach().contiguous()
        return new_grads, new_retain, new_ema

    def _contiguous(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the same values, written back to ``tensor`` after every pass if it is a copy."""
        if tensor.is_contiguous():
            return tensor
        copy = tensor.detach().contiguous()
        self._write_back.append((tensor, copy))
        return copy

    def reduce(
        self, keep: float, gain: float, seed: int, rounding_step: Tensor | None, all_or_nothing: bool = False
    ) -> None:
        """``e <- keep * e + gain * r`` and the sums of the step, into ``stats[:5]``."""
        self._table.reduce(self.stats, self._scratch, rounding_step, keep, gain, seed, all_or_nothing, self._threads)
        self._finish_copies()

    def apply(self, tau: float) -> None:
        """``g <- alpha * g + beta * e`` as ``stats[:5]`` ask for; |g|^2 as written into ``stats[5]``."""
        self._table.apply(self.stats, self._scratch, tau, self._threads)

    def finish(self, tau: float) -> None:
        """Rescales g where that is needed and completes ``stats``."""
        self._table.finish(self.stats, self._scratch, tau, self._threads)
        self._finish_copies()

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
        self._finish_copies()

    def _finish_copies(self) -> None:
        if self._write_back:
            with torch.no_grad():
                for original, copy in self._write_back:
                    original.copy_(copy)
