"""Gradients that lie in memory of somebody else: DistributedDataParallel's buckets (``gradient_as_bucket_view=True``).

There ``param.grad`` is a view into a bucket, and the next backward pass writes that bucket, whatever ``.grad`` was in
between. So what has to outlive a backward pass is copied out: a copy that plain DDP, whose gradients are their own,
does not make.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_lent(grad: Tensor | None) -> bool:
    """Whether a gradient may be a view into a bucket. Autograd's own gradients are no views."""
    return (
        type(grad) is Tensor
        and grad._is_view()
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    )


def kept(grad: Tensor | None, own: Tensor | None) -> Tensor | None:
    """``grad``; of a lent one a copy, in ``own`` where there is one of an earlier micro-batch."""
    if grad is None or not is_lent(grad):
        return grad
    with torch.no_grad():
        return grad.clone() if own is None or own.shape != grad.shape else own.copy_(grad)


class HeldGradients:
    """The gradients of some parameters, while backward passes put others into ``.grad``."""

    @torch.no_grad()
    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self.grads = [param.grad for param in params]
        self._copies = [(grad, grad.clone()) for grad in self.grads if grad is not None and is_lent(grad)]

    @torch.no_grad()
    def put_back(self) -> None:
        """``.grad`` is what it was, and lent memory holds what it held."""
        for lent, copy in self._copies:
            lent.copy_(copy)
        for param, grad in zip(self._params, self.grads, strict=True):
            param.grad = grad
