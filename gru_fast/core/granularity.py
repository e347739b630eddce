"""Groups of parameters that a rule decides for by themselves: each tensor, each layer, or by a function of the name."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

GRANULARITIES = ("global", "tensor", "layer")
Granularity = Literal["global", "tensor", "layer"] | Callable[[str], Hashable]

_LAYER = re.compile(r"^(.*?\.)?\d+(?=\.)")


@dataclass(frozen=True)
class Grouping:
    """The group of each parameter: a place in ``labels``, what messages and statistics call them."""

    of_row: list[int]
    labels: list[str]


def check_granularity(granularity: Any) -> Granularity:
    """``granularity``, or an error that names those there are."""
    if callable(granularity) or (isinstance(granularity, str) and granularity in GRANULARITIES):
        return granularity
    known = ", ".join(GRANULARITIES)
    raise ValueError(f"granularity: expected one of {known}, or a function of a parameter's name, got {granularity!r}")


def grouping(granularity: Granularity, names: Sequence[str] | None, count: int) -> Grouping | None:
    """The groups of ``count`` parameters; None: one of all.

    Raises:
        ValueError: names are needed, and there are none.
    """
    if granularity == "global":
        return None
    if granularity == "tensor":
        return Grouping(list(range(count)), [str(row) for row in range(count)] if names is None else list(names))
    if names is None:
        raise ValueError(
            f"granularity: expected parameters with names for {granularity!r}; pass model.named_parameters() to the "
            "RetainEMA or RetainGradient"
        )
    key = layer_of if granularity == "layer" else granularity
    places: dict[Any, int] = {}
    of_row = [places.setdefault(key(name), len(places)) for name in names]
    return Grouping(of_row, [str(label) for label in places])


def layer_of(name: str) -> str:
    """The layer of a parameter: its name up to the first number, or else up to its module.

    >>> [layer_of(name) for name in ("model.layers.3.self_attn.q_proj.weight", "model.norm.weight", "scale")]
    ['model.layers.3', 'model.norm', 'scale']
    """
    found = _LAYER.match(name)
    return found[0] if found else name.rpartition(".")[0] or name
