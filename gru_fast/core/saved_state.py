"""What :meth:`gru_fast.RetainEMA.state_dict` holds, and whether such a state fits the parameters at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
FORMAT_KEPT = 2  # with kept gradients, which must not be left behind unnoticed
_KEYS = frozenset({"format", "ema", "names", "seen", "step", "seed", "rounding_steps"})


def check_state(
    state: Mapping[str, Any],
    names: Sequence[str] | None,
    sets: Sequence[Sequence[Tensor]],
    shapes: Sequence[torch.Size],
) -> None:
    """Refuses a state that does not fit: keys, format, number, names, shapes, dtypes.

    Args:
        state: as RetainEMA has it; its e may be sharded.
        names: of the parameters, where known.
        sets: of every retain set e of each parameter, or this process' part of it.
        shapes: of the parameters.

    Raises:
        ValueError, TypeError: name the parameter, what was expected and what was found.
    """
    missing = _KEYS - set(state)
    if missing:
        raise ValueError(f"state_dict: expected the keys of RetainEMA.state_dict(), missing {sorted(missing)}")
    if state["format"] not in (FORMAT, FORMAT_KEPT):
        raise ValueError(f"state_dict: expected format {FORMAT_KEPT} at most, got {state['format']}; upgrade gru_fast")
    saved, count = state["ema"], len(shapes)
    found = len(state["seen"])  # all that were saved, also where torch.distributed.checkpoint has filled in fewer e
    if len(saved) != count * len(sets) or found != len(saved):
        if found % count == 0 and found not in {0, count * len(sets)}:
            wanted = f"{len(sets)} retain sets, got {found // count}"
            raise ValueError(f"state_dict: expected {wanted}; RetainEMA(..., sets=) says how many there are")
        of_sets = "" if len(sets) == 1 else f" in each of {len(sets)} sets"
        raise ValueError(f"state_dict: expected {count} parameters{of_sets}, got {len(saved)}: of another model?")
    if names is not None and state["names"] is not None and list(state["names"]) != list(names):
        row = next(i for i, (a, b) in enumerate(zip(names, state["names"], strict=True)) if a != b)
        raise ValueError(f'state_dict: expected parameter {row} to be "{names[row]}", got "{state["names"][row]}"')
    ours = [e for tensors in sets for e in tensors]
    for place, (own, theirs) in enumerate(zip(ours, saved, strict=True)):
        label = _label("ema", place, names, count)
        _check_shape(label, theirs, shapes[place % count])
        if own.dtype != theirs.dtype:
            raise TypeError(
                f"{label}: expected {own.dtype}, got {theirs.dtype}; give RetainEMA the dtype of the saved run"
            )
    kept = state.get("kept", [])
    if state["format"] == FORMAT_KEPT and len(kept) != state.get("num_kept", -1):
        raise ValueError(
            f"state_dict: expected {state.get('num_kept', 'some')} kept gradients, got {len(kept)}; "
            "torch.distributed.checkpoint fills in those there are: keep() as many before it loads"
        )
    _check_kept(kept, names, shapes)


def _check_kept(kept: Sequence[Sequence[Tensor]], names: Sequence[str] | None, shapes: Sequence[torch.Size]) -> None:
    count = len(shapes)
    for at, gradient in enumerate(kept):
        if len(gradient) != count:
            raise ValueError(f"state_dict: kept[{at}]: expected {count} parameters, got {len(gradient)}")
        for place, theirs in enumerate(gradient):
            _check_shape(_label(f"kept[{at}]", place, names, count), theirs, shapes[place])


def _label(what: str, place: int, names: Sequence[str] | None, count: int) -> str:
    return f"state_dict: {what}[{place}]" + ("" if names is None else f' "{names[place % count]}"')


def _check_shape(label: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{label}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
