"""How gradients and their shards are reached: in one process or DDP, with FSDP2, with DeepSpeed ZeRO."""

from __future__ import annotations

from typing import Any

from torch import nn

from gru_fast.unlearn.engines.fsdp import FSDP2, sharded_modules
from gru_fast.unlearn.engines.plain import Engine

__all__ = ["Engine", "engine_of"]


def engine_of(accelerator: Any, model: nn.Module, uses_deepspeed: bool = False) -> Engine:
    """The engine of a model as a Trainer calls it."""
    if uses_deepspeed:
        from gru_fast.unlearn.engines.zero import ZeRO

        return ZeRO(accelerator, model)
    return (FSDP2 if sharded_modules(model) else Engine)(accelerator, model)
