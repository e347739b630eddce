"""``Engine``: how gradients are reached where they are in ``.grad``: one process, or DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gru_fast.unlearn.engines.ddp import MeanOverProcesses


class Engine:
    """What a step of a ``transformers.Trainer`` needs to know of how its model is spread; the others differ from this.

    A step: every loss runs :meth:`backward`, the last of a micro-batch through ``accelerator.backward`` inside
    :meth:`driving`. Each adds its gradient, the mean over the processes, to ``.grad`` of :meth:`named_parameters`,
    where it may be read and written. :meth:`step` or :meth:`skip` ends the step.

    Args:
        accelerator: accelerate's.
        model: as the Trainer calls it, wrapped.
    """

    def __init__(self, accelerator: Any, model: nn.Module) -> None:
        self.accelerator = accelerator
        self.model = model

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """What gradients are of, with names; of the parts that lie here, DTensors."""
        module: nn.Module = self.accelerator.unwrap_model(self.model)
        return module.named_parameters()

    def trainable(self) -> list[Tensor]:
        """The trainable ones of them."""
        return [param for _, param in self.named_parameters() if param.requires_grad]

    # ---- backward passes ---------------------------------------------------------------------------------------------

    def driving(self) -> AbstractContextManager[None]:
        """Inside, ``accelerator.backward`` does as :meth:`backward`."""
        return nullcontext()

    def backward(self, loss: Tensor, over: int) -> None:
        """Runs ``loss / over`` backward."""
        self.accelerator.backward(loss / (over / self.accelerator.gradient_accumulation_steps))  # which it divides by

    def exchange_always(self) -> None:
        """Sees to it that no backward pass leaves gradients where they are not exchanged, and losses would mix."""

    def until_the_last(self) -> AbstractContextManager[Any]:
        """For losses that meet in ``.grad``: inside, processes need not exchange it yet."""
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self.model)
        return context

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Inside, backward passes exchange gradients, also where accumulation puts that off."""
        if not isinstance(self.model, DistributedDataParallel):
            yield
            return
        before = self.model.require_backward_grad_sync
        self.model.require_backward_grad_sync = True
        try:
            yield
        finally:
            self.model.require_backward_grad_sync = before

    @property
    def exchanges_late(self) -> bool:
        """Whether gradients are the processes' means only when a backward pass is over: then each is streamed alone."""
        return isinstance(self.model, DistributedDataParallel)

    @contextmanager
    def streaming(self, params: Sequence[Tensor]) -> Iterator[MeanOverProcesses | None]:
        """Inside, gradients are taken as they come; gives what makes means of them, None where they are means."""
        if not isinstance(self.model, DistributedDataParallel):
            yield None
            return
        with self.model.no_sync():
            yield MeanOverProcesses(params, self.model.process_group)

    # ---- the end of a step -------------------------------------------------------------------------------------------

    def step(self) -> None:
        """The optimizer takes the gradients as they are now, where Trainer does not have it do so itself."""

    def skip(self) -> None:
        """The same of a step that is not to be made: no update, no decay, no new moments."""

    def give_up(self) -> None:
        """Forgets the step in progress, if there is one."""
