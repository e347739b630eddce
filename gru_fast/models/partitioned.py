"""Parameters that DeepSpeed ZeRO-3 has cut up over the processes: empty here, but while they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.sharded.shards import local, whole


def is_partitioned(param: Tensor) -> bool:
    """Whether it is one of them."""
    return hasattr(param, "ds_tensor")


def has_partitions(model: nn.Module) -> bool:
    """Whether any of the model's is."""
    return any(map(is_partitioned, model.parameters()))


def shape_of(param: Any) -> tuple[int, ...]:
    """Its shape when it is whole."""
    return tuple(param.ds_shape if is_partitioned(param) else param.shape)


def piece_of(param: Any) -> Tensor:
    """What of a parameter lies in this process, the memory itself; of any other, or of a DTensor, too.

    Without what DeepSpeed pads the last pieces with, which it never writes.
    """
    if not is_partitioned(param):
        return local(param).detach()
    padded: Tensor = param.ds_tensor.detach().view(-1)
    before = padded.numel() * torch.distributed.get_rank(param.ds_process_group)
    return padded[: max(0, param.ds_numel - before)]


def whole_of(param: Tensor) -> Tensor:
    """All of it, of a DTensor too; every process must ask."""
    if not is_partitioned(param):
        return whole(param.detach())
    with put_together([param]):
        return param.detach().clone()


@contextmanager
def put_together(params: Iterable[Tensor]) -> Iterator[None]:
    """Inside, partitioned ones are whole, to be read; every process must enter."""
    partitioned = [param for param in params if is_partitioned(param)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield


def release(model: nn.Module) -> None:
    """Frees the whole weights that are kept for the next pass, so that parameters are pieces again."""
    for param in model.parameters():
        if hasattr(param, "_z3_optimizer"):
            param._z3_optimizer.empty_partition_cache()  # noqa: SLF001 - what DeepSpeed's own safe_get_* go by
            return
