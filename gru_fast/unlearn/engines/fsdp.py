"""FSDP2 (``torch.distributed.fsdp.fully_shard``) under a Trainer: when gradients leave its modules."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 has sharded, the model itself among them; none of any other model."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def exchange_gradients(model: nn.Module) -> None:
    """Has every backward pass exchange gradients and leave them in ``.grad``, also inside accelerate's ``no_sync``.

    Without, FSDP2 adds them up unsharded inside its modules until the last micro-batch of a step, where those of the
    retain loss and of the unlearning loss would mix. No other model is touched.
    """
    for module in sharded_modules(model):
        module.set_requires_gradient_sync(True, recurse=False)


def reshard(model: nn.Module) -> None:
    """Frees the whole weights that a forward pass without backward leaves, so that parameters are shards again."""
    for module in sharded_modules(model):
        module.reshard()
