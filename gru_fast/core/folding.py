"""Retain gradients into e while backward makes them: the hook of :meth:`gru_fast.RetainEMA.stream`.

What one call of a pass costs the host is as much as a small gradient costs the device. So gradients wait until there is
enough for a call: up to a number of them, and to a size beside which the call no longer counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from gru_fast.core.average import Average
from gru_fast.core.backends import passes_for
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.sharded.shards import is_sharded, local
from gru_fast.core.stats import RETAIN_NONFINITE

# Gradients, and their bytes, that may wait. A CPU takes longer over 4 MB than over the call, and would rather find them
# in its cache; a GPU goes through 64 MB in the time of one.
MOST_ROWS = 64
MOST_BYTES = {"cpu": 4 << 20}
MOST_BYTES_ELSEWHERE = 64 << 20


class Exchange(Protocol):
    """Brings the gradients of several processes together before e takes them in; of one ``stream()`` block."""

    def put(self, row: int, grad: Tensor) -> Iterable[tuple[int, Tensor]]:
        """Takes the gradient of a row; gives the rows that are complete now, with what e is to take in."""
        ...

    def rest(self) -> Iterable[tuple[int, Tensor]]:
        """What is still to be given when backward is over."""
        ...


@dataclass
class Bucket:
    """Gradients of one device that are folded in by one call: all for the first time in this step, or none.

    Attributes:
        rows, grads: which, and r of each.
        times: how often each has been folded in before in this block.
        stream: what made them, which alone may read them before backward is over; None where there are no streams.
    """

    is_first: bool
    times: int
    stream: torch.cuda.Stream | None
    rows: list[int] = field(default_factory=list)
    grads: list[Tensor | None] = field(default_factory=list)
    nbytes: int = 0


class Folding:
    """A hook of parameters: takes the gradient that backward has just made into e, and frees it.

    Rounds as one call for all of them would: by the count of roundings when the block began, and by one more for a
    second gradient of the same parameter. So the bits do not depend on what waited together. :meth:`end` counts on.

    Args:
        average: e.
        folded: by row, whether e has taken in a gradient in this step; written.
        refused: by device, what could not be taken in; added to.
        args: gamma and scale of the step.
        share: how much of the gradient goes to the one in ``held``.
        held: the gradients that ``.grad`` will have after the block; written where there is a share.
        exchange: what brings gradients together over processes first. The share is of this process's own.
    """

    def __init__(
        self,
        average: Average,
        folded: list[bool],
        refused: dict[torch.device, Tensor],
        args: StepArgs,
        share: float,
        held: list[Tensor | None],
        exchange: Exchange | None = None,
    ) -> None:
        self._exchange = exchange
        self._average, self._folded, self._refused = average, folded, refused
        self._row_of, self._shards = average.row_of, average.sharded.shards is not None
        self._devices = [e.device for e in average.tensors]
        self._first, self._share, self._held = args, share, held
        self._later = StepArgs(1.0, args.gain, seed=args.seed)  # of a row that has been folded in this step
        self._times = [0] * len(average.params)  # that a row has been taken, in this block
        self._waiting: dict[torch.device, Bucket] = {}
        self._rounds: dict[torch.device, int] = {}  # roundings of any one element
        self._streams: set[torch.cuda.Stream] = set()  # that e was written on
        self.num_sharded = 0  # gradients of sharded parameters that came

    def __call__(self, param: Tensor) -> None:
        given = param.grad
        if given is None:
            return
        param.grad = None
        row = self._row_of[id(param)]
        if self._shards:
            self.num_sharded += is_sharded(param)
            given = self._average.sharded.placed(given, row, "retain_grads")
        retain = local(given) if self._shards else given
        if self._exchange is None:
            self._put(row, retain)
        else:
            self._put_all(self._exchange.put(row, retain))
        if self._share != 0.0:
            self._give_share(row, given)

    @torch.no_grad()
    def _give_share(self, row: int, given: Tensor) -> None:
        held = self._held[row]
        if held is None:
            # Not in place: autograd may have given two parameters gradients that share memory.
            self._held[row] = given * self._share
        else:
            local(held).add_(local(given), alpha=self._share)

    def _put(self, row: int, retain: Tensor) -> None:
        device, times = self._devices[row], self._times[row]
        is_first = times == 0 and not self._folded[row]
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        bucket = self._waiting.get(device)
        if bucket is not None and (bucket.is_first, bucket.times, bucket.stream) != (is_first, times, stream):
            self._fold(device)
            bucket = None
        if bucket is None:
            self._waiting[device] = bucket = Bucket(is_first, times, stream)
        bucket.rows.append(row)
        bucket.grads.append(retain)
        bucket.nbytes += retain.nbytes
        self._times[row] = times + 1
        if len(bucket.rows) == MOST_ROWS or bucket.nbytes >= MOST_BYTES.get(device.type, MOST_BYTES_ELSEWHERE):
            self._fold(device)

    def _put_all(self, complete: Iterable[tuple[int, Tensor]]) -> None:
        for row, retain in complete:
            self._put(row, retain)

    @torch.no_grad()
    def flush(self) -> None:
        """Nothing waits any more, and what comes next on a device finds e complete."""
        if self._exchange is not None:
            self._put_all(self._exchange.rest())
        for device in list(self._waiting):
            self._fold(device)
        for stream in self._streams:
            here = torch.cuda.current_stream(stream.device)
            if stream != here:
                here.wait_stream(stream)

    def end(self) -> None:
        """What still waits, after an error, is dropped; the roundings that were made count."""
        self._waiting.clear()
        for device, rounds in self._rounds.items():
            self._average.rounding[device].add_(rounds)
        self._rounds.clear()

    def _fold(self, device: torch.device) -> None:
        bucket = self._waiting.pop(device)
        if bucket.stream is None:
            self._fold_bucket(device, bucket)
            return
        self._streams.add(bucket.stream)
        with torch.cuda.stream(bucket.stream):
            self._fold_bucket(device, bucket)

    def _fold_bucket(self, device: torch.device, bucket: Bucket) -> None:
        average, rows = self._average, bucket.rows
        keys = average.rounding_keys
        passes = passes_for(
            device,
            Rows(
                [None] * len(rows),
                bucket.grads,
                [average.tensors[row] for row in rows],
                ids=rows,
                names=None if average.names is None else [average.names[row] for row in rows],
                rounding_keys=None if keys is None else [keys[row] for row in rows],
            ),
        )
        counted = average.rounding.get(device)
        if counted is not None:
            counted = counted + bucket.times  # the pass counts this one on
            self._rounds[device] = max(self._rounds.get(device, 0), bucket.times + 1)
        passes.fold(self._first if bucket.is_first else self._later, counted)
        self._refused[device] += passes.stats[RETAIN_NONFINITE].to(device)
        for row in rows:
            self._folded[row] = average.seen[row] = True
