"""To the edge of what may be lost: the model is mixed with the original until what must stay is there (UWC)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from gru_fast.forget.watch import Point
from gru_fast.unlearn.uwc import interpolated, largest_alpha


def to_the_edge(
    set_alpha: Callable[[float], None], look: Callable[[float], Point], keep: float, resolution: float
) -> tuple[Point, list[Point]]:
    """The mixture with the largest share of the unlearned model, of those looked at, that keeps ``keep``; and all.

    The model is left at that mixture.

    Args:
        set_alpha: sets the model to alpha * unlearned + (1 - alpha) * original.
        look: at the model as it is, at an alpha.
        keep: the least share to be kept, at most 1; the original keeps 1.
        resolution: how finely to look.
    """
    seen: dict[float, Point] = {}

    def kept(alpha: float) -> float:
        set_alpha(alpha)
        seen[alpha] = look(alpha)
        return seen[alpha].kept

    # The original keeps all of itself: it need not be looked at to know it.
    alpha = largest_alpha(kept, keep, {0.0: 1.0}, resolution) or 0.0
    set_alpha(alpha)
    if alpha not in seen:
        seen[alpha] = look(alpha)
    return seen[alpha], [seen[alpha] for alpha in sorted(seen)]


def mixed(model: nn.Module, load_original: Callable[[], Any]) -> AbstractContextManager[Callable[[float], None]]:
    """Gives a function that mixes a model with its original, and leaves it as it was set last.

    Args:
        load_original: loads the original; not called for LoRA, whose adapter is scaled.
    """
    return _scaled_adapter(model) if hasattr(model, "peft_config") else _interpolated(model, load_original())


@contextmanager
def _interpolated(model: nn.Module, original: nn.Module) -> Iterator[Callable[[float], None]]:
    with interpolated(model, original) as set_alpha:
        yield set_alpha
        mixture = [param.detach().clone() for param in model.parameters()]
    with torch.no_grad():  # it was put back to the unlearned model
        for param, value in zip(model.parameters(), mixture, strict=True):
            param.copy_(value)


@contextmanager
def _scaled_adapter(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """What LoRA adds is B A, which is scaled by scaling B."""
    factors = [param for name, param in model.named_parameters() if "lora_B." in name or "lora_embedding_B." in name]
    whole = [param.detach().clone() for param in factors]

    def set_alpha(alpha: float) -> None:
        with torch.no_grad():
            for param, value in zip(factors, whole, strict=True):
                param.copy_(value * alpha)

    yield set_alpha
