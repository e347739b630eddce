"""Where a causal language model is run on rows of tokens: in batches by length, each row read for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gru_fast.data.sequences import Encoded, SequenceCollator
from gru_fast.models.batching import Together, together
from gru_fast.models.frozen import frozen

Autocast = Callable[[], AbstractContextManager[Any]]
_T = TypeVar("_T")
_POSITIONS = 16  # of a row, by which two ways to run it are compared


def of_each_row(
    model: nn.Module,
    rows: Sequence[Encoded],
    read: Callable[[dict[str, Tensor]], Iterable[_T]],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Autocast = nullcontext,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[_T]:
    """What ``read`` finds out of a model, row by row, in the order of ``rows``.

    Not of the batch: a model that makes a row depend on those beside it is given rows that it can run together, see
    :func:`gru_fast.models.batching.together`.

    Args:
        model: a causal LM; run in eval mode without gradients, its modes come back.
        rows: tokens and labels, -100 where nothing is scored; in any order, longest are run first.
        read: ``input_ids``, ``attention_mask`` and ``labels``, (B, T) -> something for each of the B rows. It is called
            within the autocast and without gradients. Padding is on the right and has label -100.
        batch_size: rows per forward pass.
        pad_token_id: for padding; never attended.
        autocast: makes the context to run the model in.
        advance: called with the number of rows after every pass.
    """
    found: dict[int, _T] = {}
    collate = SequenceCollator(pad_token_id)

    def run(some: Sequence[Mapping[str, Any]], read: Callable[[dict[str, Tensor]], Iterable[Any]]) -> list[Any]:
        batch = to_device(collate(some), model)
        with autocast():
            return list(read(batch))  # a generator would run outside

    def sample(some: list[Sequence[int]]) -> list[Tensor]:
        logits = run([{"input_ids": ids} for ids in some], lambda batch: logits_of(model, batch))
        return [sampled(one[: len(ids)]) for one, ids in zip(logits, some, strict=True)]

    with frozen(model):
        ids = [row["input_ids"] for row in rows]
        choice = together(model, "scored", ids, sample, batch_size=batch_size, dtype=dtype_of(model, autocast))
        for some in by_length(list(map(len, ids)), batch_size, choice):
            found.update(zip(some, run([rows[i] for i in some], read), strict=True))
            advance(len(some))
    return [found[i] for i in range(len(rows))]


def sampled(logits: Tensor) -> Tensor:
    """The logits of a row, (T, V), at a few positions, evenly spaced, the first and the last among them."""
    return logits[torch.linspace(0, len(logits) - 1, _POSITIONS).long()]


def logits_of(model: nn.Module, batch: Mapping[str, Tensor], params: Mapping[str, Tensor] | None = None) -> Tensor:
    """(B, T, V) for ``input_ids`` and ``attention_mask`` (B, T); with ``params``, by name, instead of the model's.

    ``batch`` may also have ``position_ids``, (B, T), and then an additive ``attention_mask`` of shape (B, 1, T, T).
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name] for name in names if name in batch} | {"use_cache": False}
    output = functional_call(model, dict(params), args=(), kwargs=inputs) if params else model(**inputs)
    return output.logits


def to_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch where the model's parameters are."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def dtype_of(model: nn.Module, autocast: Autocast) -> torch.dtype:
    """What the model computes in: the autocast's dtype, else that of its first floating-point parameter."""
    param = next(param for param in model.parameters() if param.is_floating_point())
    with autocast():
        kind = param.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else param.dtype


def by_length(lengths: Sequence[int], batch_size: int, choice: Together = Together.ANY) -> Iterator[list[int]]:
    """Rows in batches, longest first: little padding, and a batch that does not fit in memory shows at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if choice is Together.NONE:
        batch_size = 1
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups = [list(of) for _, of in groupby(order, lengths.__getitem__)] if choice is Together.EQUAL_LENGTH else [order]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
