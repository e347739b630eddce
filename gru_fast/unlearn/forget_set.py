"""The forget set under a model: gradients of its loss, steps that learn it more, and where all these tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gru_fast.core.params import trainable_params
from gru_fast.core.vectors import TaskVectorStep, accumulate_task_vector_
from gru_fast.data.sequences import Encoded, SequenceCollator, num_labels
from gru_fast.models.forward import to_device
from gru_fast.models.head import label_scores_of
from gru_fast.models.limits import limits_of

if TYPE_CHECKING:
    from gru_fast.unlearn.task_vector_options import TaskVectorOptions


class ForgetSet:
    """Rows to forget under a model: gradients of their loss, and steps that learn them more.

    Everything is computed in eval mode, since leaving one unit out is exact only for one and the same function; with
    gradient checkpointing, which transformers has in training mode only, every dropout is switched off by itself.

    Args:
        model: a causal LM on its device.
        rows: tokenized rows.
        pad_token_id: for padding; never attended.
    """

    def __init__(self, model: Any, rows: Sequence[Encoded], options: TaskVectorOptions, pad_token_id: int) -> None:
        if not len(rows):
            raise ValueError("rows: expected at least one row to forget, got an empty set")
        limits_of(model).check_rows("rows", rows)
        self.model = model
        self.rows = rows
        self.params, self.names = parameters_of(model)
        self.options = options
        self._collate = SequenceCollator(pad_token_id)
        self._set_mode()

    def num_labels(self, indices: Iterable[int]) -> int:
        """Scored tokens of some rows; label 0 has no prediction and never counts."""
        return sum(num_labels(self.rows[i]) for i in indices)

    def gradient(
        self, indices: Sequence[int], each: Callable[[int], Any] = lambda count: None
    ) -> tuple[list[Tensor | None], float]:
        """Gradient of the SUM of -log p over the label tokens of some rows, and that sum.

        Of each parameter's dtype; float32 for a 16-bit parameter where it is of several passes, which 16 bits would
        round. ``each`` is called with the number of rows after every pass.
        """
        sums: list[Tensor | None] = [None] * len(self.params)
        nll = 0.0
        size = self.options.rows_at_a_time
        for start in range(0, len(indices), size):
            some = indices[start : start + size]
            nll += self._backward(some)
            for row, param in enumerate(self.params):
                # Of a float32 parameter autograd itself keeps the sum in .grad.
                if param.dtype != torch.float32 and param.grad is not None and len(indices) > size:
                    held = sums[row]
                    sums[row] = param.grad.float() if held is None else held.add_(param.grad)
                    param.grad = None
            each(len(some))
        for row, param in enumerate(self.params):
            if param.grad is not None:
                sums[row], param.grad = param.grad, None
        return sums, nll

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one over the trainable parameters, in the form that needs no second working set.

        For SGD that is the plain loop: torch's fused one leaves 16-bit parameters on the CPU where they are.
        """
        rate = float(self.options.learning_rate or 0.0)
        if self.options.optimizer == "sgd":
            return torch.optim.SGD(self.params, lr=rate, foreach=False)
        return torch.optim.AdamW(self.params, lr=rate, weight_decay=self.options.weight_decay, fused=True)

    def step(
        self, optimizer: torch.optim.Optimizer, indices: Sequence[int], sums: Sequence[Tensor | None] | None = None
    ) -> None:
        """One step down the mean of -log p over the label tokens of some rows.

        ``sums``: their :meth:`gradient` where it is known; it is left as it is.
        """
        scale = 1.0 / self.num_labels(indices)
        found = self.gradient(indices)[0] if sums is None else sums
        for param, grad in zip(self.params, found, strict=True):
            if grad is not None:
                mean = grad.mul_(scale) if sums is None else grad * scale
                param.grad = mean.to(param.device, param.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _backward(self, indices: Sequence[int]) -> float:
        part = to_device(self._collate([self.rows[i] for i in indices]), self.model)
        with torch.enable_grad(), self._autocast():
            nll = -label_scores_of(self.model, part).log_probs.sum()
        nll.backward()
        return float(nll.detach())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.options.bf16 else nullcontext()

    def _set_mode(self) -> None:
        self.model.eval()
        if not self.options.gradient_checkpointing:
            return
        functional = float(getattr(self.model.config, "attention_dropout", 0.0) or 0.0)
        if functional:
            raise ValueError(
                f"gradient_checkpointing: expected a model without attention dropout, got {functional}, which training "
                "mode would switch on; leave it out"
            )
        # Its new name where transformers has it; the old one warns there.
        enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
        enable(**{f"{enable.__name__.partition('_')[0]}_checkpointing_kwargs": {"use_reentrant": False}})
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()


class Store:
    """theta_org, the mean, and gradients beside them: on the model's device, or all of them in host memory.

    On the device there are, in parameters: the model, theta_org, the mean, the total and the unit's own gradient, the
    steps' gradient, and the optimizer's state (none for SGD, two for AdamW). Offloaded, only the model, the gradient
    and the optimizer's state; the passes over task vectors then run on the host's kernels.
    """

    def __init__(self, params: Sequence[Tensor], names: Sequence[str], offload: bool) -> None:
        self.params = params
        self.names = names
        self.offload = offload
        self.origin = [self._copy(param.detach()) for param in params]
        self.mean = [torch.zeros_like(origin, dtype=torch.float32) for origin in self.origin]
        self._learned = [torch.empty_like(origin) for origin in self.origin] if offload else []

    def place(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients where the passes want them."""
        return [grad.cpu() if grad is not None and self.offload else grad for grad in grads]

    def accumulate(
        self,
        total: Sequence[Tensor | None] | None = None,
        own: Sequence[Tensor | None] | None = None,
        normalize: bool = True,
    ) -> TaskVectorStep:
        """:func:`gru_fast.vectors.accumulate_task_vector_` with weight 1; the model is theta_org again afterwards."""
        settings: dict[str, Any] = {"total": total, "own": own, "weight": 1.0, "normalize": normalize}
        if not self.offload:
            return accumulate_task_vector_(self._named(self.params), self.origin, self.mean, **settings)
        copy_(self._learned, self.params)
        step = accumulate_task_vector_(self._named(self._learned), self.origin, self.mean, restore=False, **settings)
        copy_(self.params, self.origin)
        return step

    def _named(self, tensors: Sequence[Tensor]) -> Any:
        return zip(self.names, tensors, strict=True)

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu", copy=True) if self.offload else tensor.clone()


def parameters_of(model: nn.Module) -> tuple[list[Tensor], list[str]]:
    """The trainable parameters of a model, each once, and their names."""
    params, names = trainable_params(model.named_parameters())
    return params, list(names or [])


@torch.no_grad()
def copy_(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors, from whatever device."""
    for left, right in zip(to, source, strict=True):
        left.copy_(right)
