"""Gradients of sharded parameters (DTensor): into their parameter's placements, and the parts of them that lie here.

Every step looks at every gradient, so what is as it should be costs two comparisons and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.sharded.shards import Shards, is_sharded, part_of, placed_like, rounding_key, shards_of

_NOTHING_CAME = (
    "expected backward to give the sharded parameters gradients, but none changed: without gradient sync FSDP2 keeps "
    "them inside the module, where those of both losses would mix; set_requires_gradient_sync(True) for every backward"
)
_Mark = tuple[int, int, int] | None


class ShardedRows:
    """Which of some parameters are sharded, and what that means for lists with one tensor per parameter."""

    def __init__(self, params: Sequence[Tensor], names: Sequence[str] | None) -> None:
        self._count = len(params)
        self._names = names
        self._rows = [(row, param) for row, param in enumerate(params) if is_sharded(param)]
        self.shards: Shards | None = shards_of(params)

    def label(self, what: str, row: int) -> str:
        """What messages call a tensor."""
        return f"{what}[{row}]" + ("" if self._names is None else f' "{self._names[row]}"')

    @torch.no_grad()
    def place(self, tensors: list[Tensor | None], what: str) -> list[int]:
        """Brings those of sharded parameters into their parameter's placements, in the list; returns which it moved.

        Raises:
            TypeError: a plain tensor for a sharded parameter.
            ValueError: one on another mesh.
        """
        moved = []
        for row, param in self._rows:
            tensor = tensors[row]
            if tensor is not None and not _is_in_place(tensor, param):
                tensors[row] = placed_like(tensor, param, self.label(what, row))
                moved.append(row)
        return moved

    def placed(self, tensor: Tensor, param: Tensor, row: int, what: str) -> Tensor:
        """The same of one tensor."""
        if not is_sharded(param) or _is_in_place(tensor, param):
            return tensor
        return placed_like(tensor, param, self.label(what, row))

    @torch.no_grad()
    def here(self, tensors: list[Tensor | None]) -> list[Tensor | None]:
        """The list with the parts of sharded tensors that lie in this process. They must be in place."""
        if not self._rows:
            return tensors
        parts = list(tensors)
        for row, _ in self._rows:
            tensor = parts[row]
            if tensor is not None:
                parts[row] = part_of(tensor)  # type: ignore[arg-type]  # in place, and so a DTensor
        return parts

    def rounding_keys(self, ema: Sequence[Tensor]) -> list[int]:
        """What the rounding bits of each 16-bit e are drawn by: its place, and for a shard which one it is."""
        keys = list(range(self._count))
        for row, param in self._rows:
            if ema[row].dtype != torch.float32:
                keys[row] = rounding_key(param, row, self._count)
        return keys

    @torch.no_grad()
    def marks(self) -> list[_Mark]:
        """Change when backward gives a sharded parameter a gradient, anew or in place."""
        grads = [param.grad for _, param in self._rows]
        # In place FSDP2 writes the local part, autograd (tensor parallel) the whole, which then counts alone.
        return [None if grad is None else (id(grad), grad._version, _version_here(grad)) for grad in grads]

    def check_marks(self, before: list[_Mark], where: str) -> None:
        """Refuses a block in which backward has left the gradients of sharded parameters to those who sharded them."""
        if self._rows and before == self.marks():
            raise RuntimeError(f"{where}: {_NOTHING_CAME}")

    def check_taken(self, count: int, where: str) -> None:
        """The same of a block that has taken ``count`` gradients of sharded parameters."""
        if self._rows and count == 0:
            raise RuntimeError(f"{where}: {_NOTHING_CAME}")


def _version_here(grad: Any) -> int:
    """Of the part that lies here, if it is of a DTensor."""
    return part_of(grad)._version if is_sharded(grad) else 0


def _is_in_place(tensor: Tensor, param: Tensor) -> bool:
    """Whether ``tensor`` lies as ``param`` does, a DTensor."""
    return (
        type(tensor) is type(param)
        and tensor.placements == param.placements  # type: ignore[attr-defined]
        and tensor.device_mesh == param.device_mesh  # type: ignore[attr-defined]
    )
