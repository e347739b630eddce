"""From hidden states to log-probabilities, a block of the vocabulary at a time: the logits never exist as a whole.

With N positions, D features and a vocabulary of V, the logits are the largest tensor of a training step (N * V), and a
loss holds several of their size. Here a block of columns is made, used and dropped; the backward pass makes it once
more. Blocks are cut from the vocabulary, not from the positions: so the gradient of a block of the weights is written
once, from all positions, and rounded as if there were no blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_ELEMENTS = 2**24  # of the logits in memory at a time: 64 MiB in float32
_LEAST_COLUMNS = 256  # of a block, so that its matrix products stay worth their while


@dataclass(frozen=True)
class AfterHead:
    """What a model does to the logits its head gives: ``scale * x``, then, with a cap, ``cap * tanh(x / cap)``."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1.0:
            x.mul_(self.scale)
        if self.cap is not None:
            x.div_(self.cap).tanh_().mul_(self.cap)
        return x

    def backward(self, grad: Tensor, after: Tensor | None) -> Tensor:
        """``grad`` of what comes out -> that of what went in, in place. ``after``: what came out; read under a cap."""
        if self.cap is not None and after is not None:
            grad.mul_(1.0 - (after / self.cap).square_())
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


@dataclass(frozen=True)
class Head:
    """A linear layer from features to the vocabulary.

    Args:
        weight: (V, D).
        bias: (V,) or None.
        after: what the model does to its output.
        dtype: of the matrix products; under autocast not that of the weights.
    """

    weight: Tensor
    bias: Tensor | None
    after: AfterHead
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        """What softmax and sums are taken in: float32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    def blocks(self, positions: int) -> Iterator[slice]:
        """The vocabulary in pieces."""
        size = max(_LEAST_COLUMNS, _BLOCK_ELEMENTS // max(positions, 1))
        count = self.weight.shape[0]
        return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))

    def logits(self, hidden: Tensor, block: slice) -> Tensor:
        """(N, columns) of ``hidden`` (N, D), as the model would give them, in :attr:`wide`."""
        bias = None if self.bias is None else self.bias[block].to(self.dtype)
        return self.after(F.linear(hidden, self.weight[block].to(self.dtype), bias).to(self.wide))


class _LogSumExp:
    """Log of a sum of exponentials, (N,), over blocks of columns."""

    def __init__(self, positions: int, like: Tensor) -> None:
        self._most = like.new_full((positions,), -torch.inf)
        self._sum = like.new_zeros(positions)

    def add(self, logits: Tensor) -> None:
        """Takes a block in, which is overwritten."""
        most = torch.maximum(self._most, logits.amax(dim=1))
        shift = torch.where(most == -torch.inf, 0.0, most)  # a block of -inf alone: its exponentials are 0, not NaN
        self._sum = self._sum * (self._most - shift).exp() + logits.sub_(shift[:, None]).exp_().sum(dim=1)
        self._most = most

    @property
    def value(self) -> Tensor:
        return self._most + self._sum.log()


def _gradients(
    hidden: Tensor, head: Head, needed: Sequence[bool], of: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias, block by block; None for those that nobody needs.

    Args:
        needed: which of the three.
        of: logits of a block, which it may overwrite -> their gradient.
    """
    narrow = hidden.to(head.dtype)
    of_hidden = hidden.new_zeros(hidden.shape, dtype=head.wide) if needed[0] else None
    of_weight = torch.empty_like(head.weight) if needed[1] else None
    of_bias = torch.empty_like(head.bias) if needed[2] and head.bias is not None else None
    for block in head.blocks(len(hidden)):
        logits = head.logits(narrow, block)
        kept = logits.clone() if head.after.cap is not None else None
        grad = head.after.backward(of(logits, block), kept).to(head.dtype)
        if of_hidden is not None:
            of_hidden += grad @ head.weight[block].to(head.dtype)
        if of_weight is not None:
            of_weight[block] = grad.T @ narrow
        if of_bias is not None:
            of_bias[block] = grad.sum(dim=0)
    return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias


def label_log_probs(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """log p of one label at each position, (N,), in float32 at least; natural logarithm.

    Args:
        hidden: (N, D), what the head is given.
        labels: (N,) int64, in 0..V-1.
        head: see :class:`Head`.

    Gradients flow to ``hidden`` and to the head; in float32 they are those of the whole logits to rounding.
    """
    found: Tensor = _LabelLogProbs.apply(hidden, head.weight, head.bias, labels, head.after, head.dtype)
    return found


class _LabelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        after: AfterHead,
        dtype: torch.dtype,
    ) -> Tensor:
        head = Head(weight, bias, after, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = hidden.to(dtype)
            picked = hidden.new_zeros(len(hidden), dtype=head.wide)
            total = _LogSumExp(len(hidden), picked)
            for block in head.blocks(len(hidden)):
                logits = head.logits(narrow, block)
                column, inside = _columns(labels, block)
                picked = torch.where(inside, logits.gather(1, column[:, None])[:, 0], picked)
                total.add(logits)
        ctx.save_for_backward(hidden, weight, bias, labels, total.value)
        ctx.after, ctx.dtype = after, dtype
        return picked - total.value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, total = ctx.saved_tensors

        def of(logits: Tensor, block: slice) -> Tensor:
            column, inside = _columns(labels, block)
            found = logits.sub_(total[:, None]).exp_().mul_(-grad[:, None])
            return found.scatter_add_(1, column[:, None], torch.where(inside, grad, 0.0)[:, None])

        head = Head(weight, bias, ctx.after, ctx.dtype)
        return *_gradients(hidden, head, ctx.needs_input_grad[:3], of), None, None, None


def _columns(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Where each label stands in a block, and whether it does; no host sync."""
    inside = (labels >= block.start) & (labels < block.stop)
    return (labels - block.start).clamp(0, block.stop - block.start - 1), inside


def mean_divergence(hidden: Tensor, head: Head, reference_hidden: Tensor, reference: Head) -> Tensor:
    """KL(p_ref, p): mean over N positions of ``sum over the vocabulary of p_ref * (log p_ref - log p)``, in nats.

    Args:
        hidden: (N, D), and ``head``: of the model in training; gradients flow to both.
        reference_hidden: (N, D), and ``reference``: of the other; no gradient.
    """
    found: Tensor = _MeanDivergence.apply(
        hidden, head.weight, head.bias, head.after, head.dtype, reference_hidden.detach(), reference
    )
    return found


class _MeanDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        after: AfterHead,
        dtype: torch.dtype,
        reference_hidden: Tensor,
        reference: Head,
    ) -> Tensor:
        head, count = Head(weight, bias, after, dtype), len(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow, narrow_reference = hidden.to(dtype), reference_hidden.to(reference.dtype)
            like = hidden.new_zeros(count, dtype=head.wide)
            total, total_reference = _LogSumExp(count, like), _LogSumExp(count, like)
            for block in head.blocks(count):
                total.add(head.logits(narrow, block))
                total_reference.add(reference.logits(narrow_reference, block))
            lse, lse_reference = total.value, total_reference.value
            for block in head.blocks(count):
                ours = head.logits(narrow, block).sub_(lse[:, None])
                theirs = reference.logits(narrow_reference, block).sub_(lse_reference[:, None])
                # p_ref = 0 counts nothing, whatever the logarithms; Inf times 0 would be NaN.
                probs = theirs.exp()
                like += torch.where(probs > 0.0, probs * theirs.sub_(ours), 0.0).sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, lse, reference_hidden, lse_reference)
        ctx.after, ctx.dtype, ctx.reference = after, dtype, reference
        return like.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, lse, reference_hidden, lse_reference = ctx.saved_tensors
        narrow_reference = reference_hidden.to(ctx.reference.dtype)

        def of(logits: Tensor, block: slice) -> Tensor:
            found = logits.sub_(lse[:, None]).exp_()
            found -= ctx.reference.logits(narrow_reference, block).sub_(lse_reference[:, None]).exp_()
            return found.mul_(grad / len(hidden))

        head = Head(weight, bias, ctx.after, ctx.dtype)
        return *_gradients(hidden, head, ctx.needs_input_grad[:3], of), None, None, None, None
