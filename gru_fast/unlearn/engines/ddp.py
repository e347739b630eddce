"""Means of gradients over the processes of DistributedDataParallel, while they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = {"cpu": 4 << 20}
BUCKET_BYTES_ELSEWHERE = 25 << 20  # as DDP's own


class MeanOverProcesses:
    """The mean of each gradient over the processes of a DDP model, as its backward pass goes on; of one such pass.

    DDP puts its means into ``.grad`` when the pass is over, all gradients then side by side. Here they come in buckets,
    which e takes in (:meth:`gru_fast.RetainEMA.stream`) and which are let go: run the pass within DDP's ``no_sync()``.

    Every process exchanges the same buckets in the same order, whichever order its gradients come in: from the last
    parameter to the first, as backward makes them about. A parameter without a gradient counts as zeros.

    Args:
        params: those that may have a gradient, in the order of the rows.
        group: of processes; None: all.
        bucket_bytes: of a bucket at least, but for the last; by default by device.
    """

    def __init__(
        self, params: Sequence[Tensor], group: dist.ProcessGroup | None = None, bucket_bytes: int | None = None
    ) -> None:
        self._params, self._group = params, group
        self._buckets = _buckets(params, bucket_bytes)
        self._bucket_of = {row: index for index, rows in enumerate(self._buckets) for row in rows}
        self._waiting: list[dict[int, Tensor]] = [{} for _ in self._buckets]
        self._next = 0

    def put(self, row: int, grad: Tensor) -> list[tuple[int, Tensor]]:
        """Takes a gradient in. Returns the rows of the buckets that are whole now, with their means.

        Raises:
            RuntimeError: the row has come already, as in a second backward pass.
        """
        index = self._bucket_of[row]
        if index < self._next or row in self._waiting[index]:
            raise RuntimeError(
                f"params[{row}]: its gradient came twice in one exchange; open a stream() for each backward pass"
            )
        self._waiting[index][row] = grad
        found = []
        while self._next < len(self._buckets) and len(self._waiting[self._next]) == len(self._buckets[self._next]):
            found += self._exchanged()
        return found

    def rest(self) -> list[tuple[int, Tensor]]:
        """The buckets that some parameters have no gradient for."""
        found = []
        while self._next < len(self._buckets):
            found += self._exchanged()
        return found

    @torch.no_grad()
    def _exchanged(self) -> list[tuple[int, Tensor]]:
        rows, there = self._buckets[self._next], self._waiting[self._next]
        self._waiting[self._next] = {}
        self._next += 1
        grads = [there[row] if row in there else torch.zeros_like(self._params[row]) for row in rows]
        flat = torch.cat([grad.reshape(-1) for grad in grads])  # not in place: gradients may share memory
        dist.all_reduce(flat, group=self._group)
        flat /= dist.get_world_size(self._group)
        means = flat.split([grad.numel() for grad in grads])
        return [(row, mean.view_as(grad)) for row, mean, grad in zip(rows, means, grads, strict=True)]


def _buckets(params: Sequence[Tensor], bucket_bytes: int | None) -> list[list[int]]:
    """Rows of one device and dtype each, from the last to the first."""
    buckets: list[list[int]] = []
    kind, nbytes = None, 0
    for row in reversed(range(len(params))):
        param = params[row]
        most = BUCKET_BYTES.get(param.device.type, BUCKET_BYTES_ELSEWHERE) if bucket_bytes is None else bucket_bytes
        if kind != (param.device, param.dtype) or nbytes >= most:
            buckets.append([])
            kind, nbytes = (param.device, param.dtype), 0
        buckets[-1].append(row)
        nbytes += param.nbytes
    return buckets
