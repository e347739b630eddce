"""What a model keeps of rows that it goes on with: rows leave it, and others join them.

All rows of a cache end together, in its last column; what is before the first token of a shorter one is zeros, which
the mask of the batch leaves out. So a row can stand beside others that have read more than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # columns beyond those in use


class RoomyLayer(DynamicLayer):
    """Keys and values (B, H, T, D) at the beginning of tensors with room for more columns.

    transformers' layer copies all that it has for every token that is added: for a small model, a fifth of the time.
    """

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()
        self.device, self.is_initialized = keys.device, True
        self._buffers: tuple[Tensor, ...] = (keys, values)
        self._use(used)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds columns, and returns all that there are."""
        if self.keys.data_ptr() != self._buffers[0].data_ptr():  # rows were chosen among them
            self._buffers = self.keys, self.values
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = tuple(_widened(old[:, :, :begin], end + ROOM) for old in self._buffers)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self._use(end)
        return self.keys, self.values

    def reset(self) -> None:
        """Lets go of everything."""
        super().reset()
        self._buffers = ()

    def _use(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)


def _widened(old: Tensor, columns: int) -> Tensor:
    new = old.new_empty(*old.shape[:2], columns, old.shape[-1])
    new[:, :, : old.shape[-2]] = old
    return new


def can_be_joined(cache: Any) -> bool:
    """Whether rows of it can be put beside those of another: it has nothing but keys and values of all tokens."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(each) in {DynamicLayer, RoomyLayer} and each.is_initialized for each in layers)


def joined(parts: Sequence[tuple[Any, Sequence[int]]], columns: int) -> DynamicCache:
    """Rows of some caches as one, the last ``columns`` columns of each.

    Args:
        parts: caches for which :func:`can_be_joined`, and the rows of each that are taken. They are empty afterwards.
        columns: as many as the longest of these rows has tokens.
    """
    result = DynamicCache()
    caches = [cache for cache, _ in parts]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        rows = [torch.tensor(some, device=layer.device) for layer, (_, some) in zip(layers, parts, strict=True)]
        keys, values = (
            _beside([*zip((getattr(layer, name) for layer in layers), rows, strict=True)], columns)
            for name in ("keys", "values")
        )
        result.layers.append(RoomyLayer(keys, values, columns))
        for layer in layers:
            layer.reset()  # the memory of one layer at a time, not of two caches
    return result


def _beside(parts: Sequence[tuple[Tensor, Tensor]], columns: int) -> Tensor:
    """(B, H, columns and room, D)."""
    some, _ = parts[0]
    new = some.new_empty(sum(len(rows) for _, rows in parts), some.shape[1], columns + ROOM, some.shape[-1])
    begin = 0
    for old, rows in parts:
        end, used = begin + len(rows), min(columns, old.shape[-2])
        new[begin:end, :, : columns - used] = 0
        new[begin:end, :, columns - used : columns] = old[:, :, old.shape[-2] - used :].index_select(0, rows)
        begin = end
    return new
