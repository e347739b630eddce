"""The weights of a model in a number format, and what of a step between two models outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.attacks.parts.formats import Format

_LEAST_COLUMNS = 8  # of a weight that is rounded: convolutions over time and the like stay as they are


def to_round(model: nn.Module, *, head: bool = False) -> dict[str, nn.Parameter]:
    """The weights that a server would quantize, by name: matrices and stacks of them (experts).

    Embeddings and the head that turns into words stay in full, as bitsandbytes and torchao leave them, unless ``head``
    asks for them too, as llama.cpp takes them.

    Raises:
        ValueError: there are none.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        tables.add(id(output.weight))
    found = {
        name: param
        for name, param in model.named_parameters()
        if param.ndim >= 2
        and param.is_floating_point()
        and param.shape[-1] >= _LEAST_COLUMNS
        and (head or id(param) not in tables)
    }
    if not found:
        raise ValueError(
            f"model: expected matrices of {_LEAST_COLUMNS} columns and more to round, got none; is it quantized?"
        )
    return found


@contextmanager
@torch.no_grad()
def rounded(model: nn.Module, form: Format, *, head: bool = False) -> Iterator[None]:
    """Inside: the weights of :func:`to_round` are what the format leaves of them, in their dtype. They come back."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    turned = _turned(model)
    try:
        for name, param in to_round(model, head=head).items():
            before.append((param, param.detach().cpu().clone()))
            param.copy_(_lying(form.rounded(_lying(param, name in turned)).values, name in turned))
        yield
    finally:
        with torch.no_grad():
            for param, kept in before:
                param.copy_(kept)


@dataclass(frozen=True)
class Survival:
    """What of the step from one model to another is left when both are rounded.

    Args:
        weights: elements looked at.
        changed: elements that differ between the two models.
        survived: share of these that come to lie on another level of the format; None where nothing changed.
        kept: <Q(b) - Q(a), b - a> / |b - a|^2, how much of the step's length is left along it: 1 all of it, 0 nothing.
    """

    weights: int
    changed: int
    survived: float | None
    kept: float | None


@torch.no_grad()
def survival(original: nn.Module, model: nn.Module, form: Format, *, head: bool = False) -> Survival:
    """How much of the step from ``original`` to ``model`` a format leaves, a weight at a time.

    An element that stays on its level may move a little with its block's scale; that shows in ``kept`` alone.

    Raises:
        ValueError: models of different weights.
    """
    weights = changed = moved = 0
    along = length = 0.0
    theirs, turned = dict(original.named_parameters()), _turned(model)
    for name, param in to_round(model, head=head).items():
        if name not in theirs or theirs[name].shape != param.shape:
            found = "none" if name not in theirs else f"one of shape {tuple(theirs[name].shape)}"
            raise ValueError(f"original: expected a weight {name} of shape {tuple(param.shape)}, got {found}")
        after, before = (_lying(p.detach(), name in turned).float() for p in (param, theirs[name].to(param.device)))
        step = after - before
        weights += step.numel()
        if not bool(step.any()):
            continue
        was, now = form.rounded(before), form.rounded(after)
        changed += int((step != 0).sum())
        moved += int(((step != 0) & (was.levels != now.levels)).sum())
        along += float(((now.values - was.values).double() * step.double()).sum())
        length += float(step.double().square().sum())
    return Survival(weights, changed, moved / changed if changed else None, along / length if changed else None)


def _turned(model: Any) -> set[str]:
    """Weights that lie the other way round, an input a row: GPT-2's."""
    return {f"{path}.weight" for path, module in model.named_modules() if type(module).__name__ == "Conv1D"}


def _lying(weight: Tensor, turned: bool) -> Tensor:
    return weight.T.contiguous() if turned else weight
