"""The rows to keep that a moving average begins with, of any dataset that can be indexed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def batches_of(
    dataset: Any, collate: Callable[[list[Any]], Any], count: int, size: int, *, seed: int, process: int, processes: int
) -> Iterator[Any]:
    """``count`` batches of ``size`` items for this process, in an order of their own: nothing else draws from it.

    Every item comes once before any comes again, over all processes together.

    Args:
        dataset: of ``len(dataset)`` items.
        collate: items -> batch.
        seed: of the order.
        process, processes: which of how many this is.

    Raises:
        TypeError: a dataset that is read as a stream.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"warm_up_retain: expected a train_dataset that can be indexed, got {type(dataset).__name__}, a stream; "
            "leave warm_up_retain out"
        )
    generator = torch.Generator().manual_seed(seed)
    needed = count * size * processes
    passes = [torch.randperm(len(dataset), generator=generator) for _ in range(-(-needed // len(dataset)))]
    order = torch.cat(passes)[:needed][process::processes].tolist()
    for start in range(0, len(order), size):
        yield collate([dataset[index] for index in order[start : start + size]])
