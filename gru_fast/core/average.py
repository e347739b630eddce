"""e of some parameters, and what a step needs to know of them: the same for a RetainEMA and for a plain list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.backends.native import TensorList, serves
from gru_fast.core.checks import check_entries
from gru_fast.core.granularity import Granularity, Grouping, grouping
from gru_fast.core.load import core
from gru_fast.core.params import ema_dtypes, trainable_params, unique_params
from gru_fast.core.sharded.rows import ShardedRows
from gru_fast.core.sharded.shards import check_params, is_sharded, local

_calls = itertools.count()  # rounding steps of plain 16-bit lists, which keep no count of their own


class Average:
    """The moving average e of the retain gradients of some parameters, as it lies in this process.

    Args:
        params: each once.
        names: theirs, or None.
        tensors: e of each; of a sharded parameter the part that goes with its shard. Written by every step.
        seed: of the rounding of a 16-bit e.
        seen: whether a retain gradient of every parameter may have come in already.
        is_kept: whether there is an e; without one, ``tensors`` is empty and a step works against r itself.
    """

    def __init__(
        self,
        params: list[Tensor],
        names: Sequence[str] | None,
        tensors: list[Tensor],
        *,
        seed: int = 0,
        seen: bool = False,
        is_kept: bool = True,
    ) -> None:
        self.params = params
        self.names = names
        self.tensors = tensors
        self.seed = seed
        self.is_kept = is_kept
        self.sharded = ShardedRows(params, names)
        self.see([seen] * len(params))
        self.devices = list(dict.fromkeys(local(t).device for t in (tensors if is_kept else params)))
        self.known: TensorList | None = None
        self._grouped_by: Granularity = "global"
        self._grouping: Grouping | None = None
        self.rounding: Mapping[torch.device, Tensor] = {}

    # ---- where it comes from -----------------------------------------------------------------------------------------

    @classmethod
    def zeros(cls, params: Iterable[Any], dtype: torch.dtype | None, seed: int) -> Average:
        """e = 0 for the trainable ones of ``params``: of those with ``dtype`` in it, float32 of the others."""
        tensors, names = trainable_params(params)
        dtypes = ema_dtypes(tensors, dtype, names)
        ema = [torch.zeros_like(local(p), dtype=t, requires_grad=False) for p, t in zip(tensors, dtypes, strict=True)]
        average = cls(tensors, names, ema, seed=seed)
        average.replaced(ema, [])
        return average

    @classmethod
    def zeros_of_sets(cls, params: Iterable[Any], dtype: torch.dtype | None, seed: int, count: int) -> list[Average]:
        """The same for each of ``count`` retain sets; 16-bit ones are rounded by different bits."""
        if count == 1:
            return [cls.zeros(params, dtype, seed)]
        pairs = list(params)
        return [cls.zeros(pairs, dtype, seed + place) for place in range(count)]

    @classmethod
    def not_kept(cls, params: Iterable[Any]) -> Average:
        """No e of the trainable ones of ``params``: a step works against r itself."""
        tensors, names = trainable_params(params)
        ema_dtypes(tensors, None, names)  # refuses what no step works on
        return cls(tensors, names, [], is_kept=False)

    @classmethod
    def of_gradients(
        cls, params: Iterable[Any], retain_grads: Sequence[Tensor | None] | None
    ) -> tuple[Average, list[Tensor | None]]:
        """The same for one step whose retain gradients somebody hands in, one per parameter.

        Raises:
            TypeError, ValueError: what is no such list, or not of its length; the message names the culprit.
        """
        unique = unique_params(params)
        if retain_grads is None:
            raise ValueError("retain_grads: expected a list of tensors where ema is None, got None")
        check_entries("retain_grads", retain_grads, unique.count, "a list of tensors")
        check_params(unique.tensors, unique.rows)
        average = cls(unique.tensors, unique.names, [], is_kept=False)
        return average, [retain_grads[row] for row in unique.rows]

    @classmethod
    def of_list(
        cls, params: Iterable[Any], ema: Sequence[Tensor], retain_grads: Sequence[Tensor | None] | None
    ) -> tuple[Average, list[Tensor | None] | None]:
        """A list of tensors that somebody else keeps, one per parameter, with its retain gradients, for one step.

        A parameter that comes twice counts once. 16-bit tensors are rounded from a count of calls in this process.

        Raises:
            TypeError, ValueError: what is no such list, or not of its length; the message names the culprit.
        """
        unique = unique_params(params)
        check_entries("ema", ema, unique.count, "a RetainEMA or a list of tensors")
        if retain_grads is not None:
            check_entries("retain_grads", retain_grads, unique.count, "a RetainEMA or a list of tensors")
        check_params(unique.tensors, unique.rows)
        given = [ema[row] for row in unique.rows]
        for row, e in zip(unique.rows, given, strict=True):
            if not isinstance(e, Tensor):
                raise TypeError(f"ema[{row}]: expected a torch.Tensor, got {type(e).__name__}")
        average = cls(unique.tensors, unique.names, given, seen=True)
        if average.sharded.shards is not None:
            pairs = enumerate(zip(unique.tensors, given, strict=True))
            average.tensors = [_part_of(param, e, row) for row, (param, e) in pairs]
        average._count_calls()
        return average, None if retain_grads is None else [retain_grads[row] for row in unique.rows]

    def _count_calls(self) -> None:
        devices = {e.device for e in self.tensors if e.dtype != torch.float32}
        if any(device.type == "cuda" for device in devices) and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                "ema: expected a RetainEMA while a CUDA graph is captured, got a list with 16-bit tensors: every "
                "replay would round them with the same bits"
            )
        if devices:
            call = next(_calls)
            self.rounding = {device: torch.full((1,), call, dtype=torch.int64, device=device) for device in devices}

    # ---- what a step asks of it --------------------------------------------------------------------------------------

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row of a parameter, by its ``id()``."""
        return {id(param): row for row, param in enumerate(self.params)}

    @cached_property
    def rounding_keys(self) -> list[int] | None:
        """What the rounding bits of each e are drawn by, where that is not its place in the list."""
        return None if self.sharded.shards is None else self.sharded.rounding_keys(self.tensors)

    def gradients(self) -> list[Tensor | None]:
        """g, one per parameter: what of it lies here, brought into its parameter's placements."""
        return self.sharded.parts(core.gradients(self.params), "grads", self._set_grad)

    def make_grad(self, row: int) -> Tensor:
        """A gradient of zeros for a parameter that has none; returns what of it lies here."""
        grad = torch.zeros_like(self.params[row])
        self._set_grad(row, grad)
        return local(grad)

    def grouping(self, granularity: Granularity) -> Grouping | None:
        """The groups of its parameters, found out anew where another granularity is asked for; None: one of all."""
        if granularity != self._grouped_by:
            self._grouping = grouping(granularity, self.names, len(self.params))
            self._grouped_by = granularity
        return self._grouping

    def note(self, had: Iterable[object]) -> None:
        """Remembers which parameters have had a retain gradient: those for which ``had`` is neither None nor False."""
        if not self._all_seen:
            here = (entry is not None and entry is not False for entry in had)
            self.see([seen or new for seen, new in zip(self.seen, here, strict=True)])

    def see(self, seen: list[bool]) -> None:
        """Takes over which parameters have had a retain gradient."""
        self.seen, self._all_seen = seen, all(seen)

    def effective(self, grads: Sequence[Tensor | None]) -> list[int] | None:
        """The rows that can have an effect, where that is not all of them: those with an e or a g."""
        if self._all_seen or all(grad is not None for grad in grads):
            return None
        return [row for row, seen in enumerate(self.seen) if seen or grads[row] is not None]

    def _set_grad(self, row: int, grad: Tensor) -> None:
        self.params[row].grad = grad

    # ---- what changes it between steps -------------------------------------------------------------------------------

    def replaced(self, tensors: list[Tensor], rounding_steps: Sequence[int]) -> None:
        """Other tensors are e now. ``rounding_steps``: one per device with a 16-bit e (else the largest serves all)."""
        self.tensors = tensors
        self.devices = list(dict.fromkeys(e.device for e in tensors))
        self.known = TensorList(tensors) if all(map(serves, self.devices)) else None
        devices = list(dict.fromkeys(e.device for e in tensors if e.dtype != torch.float32))
        if len(rounding_steps) != len(devices):
            rounding_steps = [max(rounding_steps, default=0)] * len(devices)
        self.rounding = {
            device: torch.full((1,), step, dtype=torch.int64, device=device)
            for device, step in zip(devices, rounding_steps, strict=True)
        }


def _part_of(param: Tensor, ema: Tensor, row: int) -> Tensor:
    """What of e lies here. It is not moved into its parameter's placements: it is written."""
    if not is_sharded(param):
        return ema
    if not is_sharded(ema) or ema.placements != param.placements:
        got = ema.placements if is_sharded(ema) else "a plain tensor"
        raise ValueError(f"ema[{row}]: expected the placements of its parameter, {param.placements}, got {got}")
    return local(ema)
