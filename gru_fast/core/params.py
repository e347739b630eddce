"""Lists of parameters: each once, by name where known, and what an EMA of them can be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.sharded.shards import check_param, check_params, is_sharded


@dataclass(frozen=True)
class UniqueParams:
    """Parameters, each once; their names if they came as pairs; their places among the ``count`` that were given."""

    tensors: list[Tensor]
    names: list[str] | None
    rows: list[int]
    count: int


def unique_params(params: Iterable[Any]) -> UniqueParams:
    """Takes parameters or ``(name, parameter)`` pairs; a tied parameter that comes twice counts once."""
    if isinstance(params, Tensor):
        raise TypeError("params: expected an iterable of parameters, got a tensor; pass [tensor]")
    found: dict[int, tuple[int, str | None, Tensor]] = {}
    count = 0
    for row, item in enumerate(params):
        name, param = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
        if not isinstance(param, Tensor):
            hint = "; pass one flat list, not optimizer.param_groups" if isinstance(param, dict) else ""
            raise TypeError(f"params[{row}]: expected a torch.Tensor, got {type(param).__name__}{hint}")
        found.setdefault(id(param), (row, name, param))
        count += 1
    rows = [row for row, _, _ in found.values()]
    names = [name for _, name, _ in found.values() if name is not None]
    tensors = [tensor for _, _, tensor in found.values()]
    return UniqueParams(tensors, names if names and len(names) == len(tensors) else None, rows, count)


def trainable_params(params: Iterable[Any]) -> tuple[list[Tensor], list[str] | None]:
    """The trainable ones, each once, and their names if they came as pairs; checks that there are any."""
    unique = unique_params(params)
    tensors, names = unique.tensors, unique.names
    if not tensors:
        raise ValueError("params: expected at least one parameter, got none (was a generator used up before?)")
    check_params(tensors, names=names)
    rows = [row for row, param in enumerate(tensors) if param.requires_grad]
    if not rows:
        raise ValueError(f"params: expected a trainable parameter, but all {len(tensors)} have requires_grad=False")
    return [tensors[row] for row in rows], None if names is None else [names[row] for row in rows]


def check_plain(tensor: Tensor, label: str) -> None:
    """Refuses what is spread over processes, where every process must have the whole of it."""
    check_param(tensor, label)
    if is_sharded(tensor):
        raise TypeError(
            f"{label}: expected a plain tensor, got a DTensor with placements {tuple(tensor.placements)}; task vectors "
            "are made of whole models, one in each process: load it without sharding"
        )


def ema_dtypes(params: Sequence[Tensor], dtype: torch.dtype | None, names: Sequence[str] | None) -> list[torch.dtype]:
    """The dtype of each parameter's e: ``dtype`` where the parameter has it, else float32."""
    known = (torch.float32, torch.bfloat16, torch.float16)
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype: expected torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")
    for row, param in enumerate(params):
        if param.dtype not in known:
            label = f"params[{row}]" + ("" if names is None else f' "{names[row]}"')
            raise TypeError(f"{label}: expected float32, bfloat16 or float16, got {param.dtype}; convert the model")
    if dtype in (None, torch.float32):
        return [torch.float32] * len(params)
    if all(param.dtype != dtype for param in params):
        found = ", ".join(sorted({str(param.dtype) for param in params}))
        raise TypeError(
            f"dtype: expected torch.float32 or the dtype of the gradients, got {dtype} for parameters of {found}"
        )
    return [param.dtype if param.dtype == dtype else torch.float32 for param in params]
