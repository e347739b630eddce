"""FSDP2 (``torch.distributed.fsdp.fully_shard``) under a Trainer: when gradients leave its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule

from gru_fast.unlearn.engines.plain import Engine


class FSDP2(Engine):
    """Every backward pass exchanges gradients and leaves them in ``.grad``, also inside accelerate's ``no_sync``.

    Without, FSDP2 adds them up unsharded inside its modules until the last micro-batch of a step, where those of the
    retain loss and of the unlearning loss would mix.
    """

    def exchange_always(self) -> None:
        """For all modules: accelerate may have put it off for this micro-batch."""
        for module in sharded_modules(self.model):
            module.set_requires_gradient_sync(True, recurse=False)

    def until_the_last(self) -> AbstractContextManager[Any]:
        """No putting off."""
        return nullcontext()


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 has sharded, the model itself among them; none of any other model."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Frees the whole weights that a forward pass without backward leaves, so that parameters are shards again."""
    for module in sharded_modules(model):
        module.reshard()


@contextmanager
def plain_names(model: nn.Module) -> Iterator[None]:
    """Inside, an adapter's modules are named as its weights are when they are saved.

    ``fsdp_activation_checkpointing`` wraps layers, and a state dict leaves the wrappers' names out. peft 0.21 looks for
    the weights of an adapter under the names of its modules: with the wrappers it finds, and saves, none.
    """
    held = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, CheckpointWrapper) and hasattr(model, "peft_config")
    ]
    for parent, name, child in held:
        parent.register_module(name, child._checkpoint_wrapped_module)  # noqa: SLF001
    try:
        yield
    finally:
        for parent, name, child in held:
            parent.register_module(name, child)
