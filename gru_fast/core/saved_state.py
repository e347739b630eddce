"""What :meth:`gru_fast.RetainEMA.state_dict` holds, and whether such a state fits the parameters at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
_KEYS = frozenset({"format", "ema", "names", "seen", "step", "seed", "rounding_steps"})


def check_state(
    state: Mapping[str, Any], names: Sequence[str] | None, ema: Sequence[Tensor], shapes: Sequence[torch.Size]
) -> None:
    """Refuses a state that does not fit: keys, format, number, names, shapes, dtypes.

    Args:
        state: as RetainEMA has it; its e may be sharded.
        names: of the parameters, where known.
        ema: e of each parameter, or this process' part of it.
        shapes: of the parameters.

    Raises:
        ValueError, TypeError: name the parameter, what was expected and what was found.
    """
    missing = _KEYS - set(state)
    if missing:
        raise ValueError(f"state_dict: expected the keys of RetainEMA.state_dict(), missing {sorted(missing)}")
    if state["format"] != FORMAT:
        raise ValueError(f"state_dict: expected format {FORMAT}, got {state['format']}; upgrade gru_fast")
    saved = state["ema"]
    if len(saved) != len(ema) or len(state["seen"]) != len(ema):
        raise ValueError(f"state_dict: expected {len(ema)} parameters, got {len(saved)}: of another model?")
    if names is not None and state["names"] is not None and list(state["names"]) != list(names):
        row = next(i for i, (a, b) in enumerate(zip(names, state["names"], strict=True)) if a != b)
        raise ValueError(f'state_dict: expected parameter {row} to be "{names[row]}", got "{state["names"][row]}"')
    for row, (ours, theirs, shape) in enumerate(zip(ema, saved, shapes, strict=True)):
        label = f"state_dict: ema[{row}]" + ("" if names is None else f' "{names[row]}"')
        if theirs.shape != shape:
            raise ValueError(f"{label}: expected shape {tuple(shape)}, got {tuple(theirs.shape)}")
        if ours.dtype != theirs.dtype:
            raise TypeError(
                f"{label}: expected {ours.dtype}, got {theirs.dtype}; give RetainEMA the dtype of the saved run"
            )
