"""The compiled passes on the tensors of one device (``gru_fast._core``)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.backends.adamw import AdamWArgs, AdamWRows, Pass
from gru_fast.core.backends.passes import Groups, Rows, StepArgs
from gru_fast.core.load import core
from gru_fast.core.rules import Rule, SeveralRule
from gru_fast.core.stats import NUM_SET_STATS, NUM_STATS

HAS_CUDA: bool = core.HAS_CUDA
TensorList = core.TensorList


def serves(device: torch.device) -> bool:
    """Whether this build has kernels for ``device``."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or not core.HAS_CUDA or torch.version.cuda is None or cuda_problem():
        return False
    return runs_on(torch.cuda.get_device_capability(device), core.CUDA_ARCHITECTURES)


@functools.cache
def cuda_problem() -> str:
    """Why the CUDA kernels run on no device here, such as a driver older than the CUDA they were built with, which may
    not be torch's; empty if they do.
    """
    return core.cuda_problem()


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


_List = Sequence["Tensor | None"]


class _Tabled:
    """Lists of tensors as a table of pointers in the core, with what its passes work in.

    A row whose tensors are laid out differently in memory is worked on in contiguous copies; those of lists that are
    written go back.

    Args:
        make: the table, of the lists by name.
        lists: None: all of it is missing.
        written: names of those that are written.
    """

    def __init__(self, make: Callable[..., Any], lists: Mapping[str, _List | None], written: Iterable[str]) -> None:
        self.table = make(**lists)
        self._copies: list[tuple[Tensor, Tensor]] = []
        if rows := self.table.mismatched_layouts:
            lists = {
                name: None if tensors is None else self._contiguous(tensors, rows, name in written)
                for name, tensors in lists.items()
            }
            self.table = make(**lists)
        self._keep_alive = lists
        self.threads = torch.get_num_threads()

    def work_in(self, device: torch.device, stats: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Statistics, made where there are none, and scratch for the passes."""
        if stats is None:
            stats = torch.empty(NUM_STATS, dtype=torch.float64, device=device)
        return stats, torch.empty(self.table.scratch_bytes, dtype=torch.uint8, device=device)

    def write_back(self) -> None:
        """What was written to copies."""
        if self._copies:
            with torch.no_grad():
                for original, copy in self._copies:
                    original.copy_(copy)

    def _contiguous(self, tensors: _List, rows: Sequence[int], is_written: bool) -> _List:
        out = list(tensors)
        for row in rows:
            tensor = out[row]
            if tensor is not None and not tensor.is_contiguous():
                out[row] = copy = tensor.detach().contiguous()
                if is_written:
                    self._copies.append((tensor, copy))
        return out


class NativePasses:
    """A step's rows on one device; see :class:`~gru_fast.core.backends.passes.Passes`."""

    def __init__(self, rows: Rows, stats: Tensor | None = None) -> None:
        known = rows.known_ema

        def make(grads: Any, retain: Any, ema: Any) -> Any:
            same = ema is rows.ema
            rest = (rows.ema_is_current, rows.ids, rows.names, rows.rounding_keys, rows.is_direct)
            return core.Table(grads, retain, ema if known is None or not same else known, *rest)

        lists = {"grads": rows.grads, "retain": rows.retain, "ema": rows.ema}
        self._tabled = _Tabled(make, lists, ("grads",) if rows.is_direct else ("grads", "ema"))
        self._table = self._tabled.table
        self._has_groups = rows.groups is not None
        self.missing_grads: list[int] = self._table.missing_grads
        self.stats, self._scratch = self._tabled.work_in(rows.ema[0].device, stats)
        self._threads = self._tabled.threads

    def reduce(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self._table.reduce(
            self.stats, self._scratch, rounding_step, args.keep, args.gain, args.seed, args.all_or_nothing,
            self._threads, self._has_groups,
        )  # fmt: skip
        self._tabled.write_back()

    def fold(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self._table.fold(
            self.stats, self._scratch, rounding_step, args.keep, args.gain, args.seed, self._threads
        )  # fmt: skip
        self._tabled.write_back()

    def apply(self, args: StepArgs) -> None:
        self._table.apply(self.stats, self._scratch, args.tau, args.rule.name, args.rule.options, self._threads)

    def finish(self, args: StepArgs) -> None:
        self._table.finish(self.stats, self._scratch, args.tau, args.rule.name, args.rule.options, self._threads)
        self._tabled.write_back()

    def gate(self, args: StepArgs, *, is_first: bool) -> None:
        rule = args.rule
        self._table.gate(self.stats, self._scratch, rule.name, rule.options, is_first, self._threads)

    def reduce_groups(self, groups: Groups) -> None:
        self._table.reduce_groups(self.stats, self._scratch, groups.of_row, groups.stats, groups.count)

    def apply_groups(self, args: StepArgs, groups: Groups) -> None:
        self._table.apply_groups(*self._of_groups(args, groups))

    def finish_groups(self, args: StepArgs, groups: Groups) -> None:
        self._table.finish_groups(*self._of_groups(args, groups))
        self._tabled.write_back()

    def _of_groups(self, args: StepArgs, groups: Groups) -> tuple[Any, ...]:
        what = (self.stats, self._scratch, groups.of_row, groups.stats, groups.count)
        return (*what, args.tau, args.rule.name, args.rule.options, self._threads)

    def step(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self._table.step(
            self.stats, self._scratch, rounding_step, args.keep, args.gain, args.tau, args.rule.name,
            args.rule.options, args.seed, args.all_or_nothing, self._threads,
        )  # fmt: skip
        self._tabled.write_back()


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
        lists = {"learned": params, "origin": origin, "total": total, "own": own, "mean": mean}
        self._tabled = _Tabled(functools.partial(core.UnitTable, names=names), lists, ("learned", "mean"))
        self._table = self._tabled.table
        self.stats, self._scratch = self._tabled.work_in(params[0].device)
        self._threads = self._tabled.threads

    def reduce(self) -> None:
        """The sums of T and r."""
        self._table.reduce(self.stats, self._scratch, self._threads)

    def measure(self) -> None:
        """|T~|^2, where the sums have cancelled."""
        self._table.measure(self.stats, self._scratch, self._threads)

    def add(self, weight: float, normalize: bool, restore: bool) -> None:
        """Adds to mean, restores params, completes ``stats``."""
        self._table.add(self.stats, self._scratch, weight, normalize, restore, self._threads)
        self._tabled.write_back()


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
        (x_name, xs, self._x_weight), (y_name, ys, self._y_weight) = x, y
        make = functools.partial(core.BlendTable, x_name=x_name, y_name=y_name, names=names)
        self._tabled = _Tabled(make, {"out": params, "x": xs, "y": ys}, ("out",))

    def run(self) -> None:
        """Writes params."""
        self._tabled.table.run(self._x_weight, self._y_weight, self._tabled.threads)
        self._tabled.write_back()


class NativeSets:
    """A step's rows beside several vectors on one device; see :class:`~gru_fast.core.backends.sets.SetPasses`."""

    def __init__(
        self, grads: list[Tensor | None], vectors: list[list[Tensor]], names: Sequence[str] | None = None
    ) -> None:
        count = len(vectors)

        def make(**lists: Any) -> Any:
            return core.SetTable(lists["grads"], [lists[str(j)] for j in range(count)], names)

        lists: dict[str, _List | None] = {"grads": grads, **{str(j): x for j, x in enumerate(vectors)}}
        self._tabled = _Tabled(make, lists, ("grads",))
        self._table = self._tabled.table
        device = vectors[0][0].device
        self.stats, self._scratch = self._tabled.work_in(
            device, torch.empty(NUM_SET_STATS, dtype=torch.float64, device=device)
        )
        self._threads = self._tabled.threads

    def reduce(self) -> None:
        self._table.reduce(self.stats, self._scratch, self._threads)

    def decide(self, rule: SeveralRule, tau: float) -> None:
        self._table.decide(self.stats, self._scratch, tau, rule.name, rule.options)

    def apply(self) -> None:
        self._table.apply(self.stats, self._scratch, self._threads)

    def finish(self, tau: float) -> None:
        self._table.finish(self.stats, self._scratch, tau, self._threads)
        self._tabled.write_back()


class NativeAdamW:
    """The tensors of one step of AdamW; see :class:`~gru_fast.core.backends.adamw.AdamWPasses`."""

    def __init__(self, rows: AdamWRows) -> None:
        make = functools.partial(core.AdamWTable, names=rows.names, rounding_keys=rows.rounding_keys)
        lists: dict[str, _List | None] = {
            "params": rows.params, "grads": rows.grads, "exp_avg": rows.exp_avg, "exp_avg_sq": rows.exp_avg_sq,
            "ema": rows.ema,
        }  # fmt: skip
        self._tabled = _Tabled(make, lists, ("params", "grads", "exp_avg", "exp_avg_sq"))
        self._table = self._tabled.table
        size, device = self._table.scratch_bytes, rows.params[0].device
        self._scratch = torch.empty(size, dtype=torch.uint8, device=device)

    def run(self, which: Pass, args: AdamWArgs) -> None:
        self._table.run(
            which, args.scalars, args.stats, args.update, args.floor, self._scratch, args.seed, args.numel,
            args.feed_back, args.write_grad, args.maximize, self._tabled.threads,
        )  # fmt: skip
        self._tabled.write_back()

    def settle(self, args: AdamWArgs, tau: float, rule: Rule | None) -> None:
        name, options = (None, (0.0,) * 4) if rule is None else (rule.name, rule.options)
        self._table.settle(args.stats, self._scratch, tau, name, options)
