"""DistributedDataParallel under a Trainer: whether a backward pass exchanges gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def exchanging(model: nn.Module) -> Iterator[None]:
    """Inside, backward passes exchange gradients, also where accumulation puts that off. No other model changes."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before = model.require_backward_grad_sync
    model.require_backward_grad_sync = True
    try:
        yield
    finally:
        model.require_backward_grad_sync = before
