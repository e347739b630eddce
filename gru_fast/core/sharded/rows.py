"""Gradients of sharded parameters (DTensor): into their parameter's placements, and the parts of them that lie here.

Every step looks at every gradient, so what is as it should be costs two comparisons and no text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
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
        self._sharded = {row: param for row, param in enumerate(params) if is_sharded(param)}
        self.shards: Shards | None = shards_of(params) if self._sharded else None

    def label(self, what: str, row: int) -> str:
        """What messages call a tensor."""
        return f"{what}[{row}]" + ("" if self._names is None else f' "{self._names[row]}"')

    def placed(self, tensor: Tensor, row: int, what: str) -> Tensor:
        """``tensor`` in the placements of the parameter of ``row``.

        Raises:
            TypeError: a plain tensor for a sharded parameter.
            ValueError: one on another mesh.
        """
        param = self._sharded.get(row)
        if param is None or _is_in_place(tensor, param):
            return tensor
        return placed_like(tensor, param, self.label(what, row))

    @torch.no_grad()
    def parts(
        self, tensors: list[Tensor | None], what: str, moved: Callable[[int, Tensor], None] | None = None
    ) -> list[Tensor | None]:
        """The list with the parts of sharded tensors that lie in this process.

        One that does not lie as its parameter does is brought there first, in ``tensors`` too; ``moved`` is then called
        with its row and what it has become. Errors as of :meth:`placed`.
        """
        if not self._sharded:
            return tensors
        parts = list(tensors)
        for row, param in self._sharded.items():
            tensor = tensors[row]
            if tensor is None:
                continue
            if not _is_in_place(tensor, param):
                tensors[row] = tensor = placed_like(tensor, param, self.label(what, row))
                if moved is not None:
                    moved(row, tensor)
            parts[row] = part_of(tensor)  # type: ignore[arg-type]  # in place, and so a DTensor
        return parts

    def check_streams(self) -> None:
        """Refuses to stream what FSDP2 copies from a device to the host while it calls the hooks already."""
        if not self._sharded or hooks_wait_for_copies():
            return
        for row, param in self._sharded.items():
            if param.device_mesh.device_type != "cpu" and part_of(param).is_pinned():
                raise RuntimeError(
                    f"stream(): {self.label('params', row)} is offloaded to the CPU, and FSDP2 of torch "
                    f"{torch.__version__} calls hooks before a gradient has come there (pytorch 180666); take "
                    "collect(), a newer torch, or CPUOffloadPolicy(pin_memory=False)"
                )

    def rounding_keys(self, ema: Sequence[Tensor]) -> list[int]:
        """What the rounding bits of each 16-bit e are drawn by: its place, and for a shard which one it is."""
        keys = list(range(self._count))
        for row, param in self._sharded.items():
            if ema[row].dtype != torch.float32:
                keys[row] = rounding_key(param, row, self._count)
        return keys

    @torch.no_grad()
    def marks(self) -> list[_Mark]:
        """Change when backward gives a sharded parameter a gradient, anew or in place."""
        grads = [param.grad for param in self._sharded.values()]
        # In place FSDP2 writes the local part, autograd (tensor parallel) the whole, which then counts alone.
        return [None if grad is None else (id(grad), grad._version, _version_here(grad)) for grad in grads]

    def check_marks(self, before: list[_Mark], where: str) -> None:
        """Refuses a block in which backward has left the gradients of sharded parameters to those who sharded them."""
        if self._sharded and before == self.marks():
            raise RuntimeError(f"{where}: {_NOTHING_CAME}")

    def check_taken(self, count: int, where: str) -> None:
        """The same of a block that has taken ``count`` gradients of sharded parameters."""
        if self._sharded and count == 0:
            raise RuntimeError(f"{where}: {_NOTHING_CAME}")


@functools.cache
def hooks_wait_for_copies() -> bool:
    """Whether FSDP2 copies a gradient to the host in full before it calls hooks with it, if there are any.

    No call says so, and only a race on a GPU shows it. Where it does, its reduction looks at the hooks twice: before
    the copy, and to call them.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    return inspect.getsource(_fsdp_collectives.foreach_reduce).count("_post_accumulate_grad_hooks") > 1


def _version_here(grad: Any) -> int:
    """Of the part that lies here, if it is of a DTensor."""
    return part_of(grad)._version if is_sharded(grad) else 0


def _is_in_place(tensor: Tensor, param: Any) -> bool:
    """Whether ``tensor`` lies as ``param`` does, a DTensor."""
    if type(tensor) is not type(param):
        return False
    # As a rule they are the very same objects, and looking into them costs ten times as much as seeing that.
    ours, wanted = tensor.placements, param.placements  # type: ignore[attr-defined]
    if ours is not wanted and ours != wanted:
        return False
    here, there = tensor.device_mesh, param.device_mesh  # type: ignore[attr-defined]
    return bool(here is there or here == there)
