"""Where a causal language model is run on rows of tokens: in batches by length, each row read for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

from gru_fast.data.sequences import Encoded, SequenceCollator
from gru_fast.models.frozen import frozen

Autocast = Callable[[], AbstractContextManager[Any]]
_T = TypeVar("_T")


def of_each_row(
    model: nn.Module,
    rows: Sequence[Encoded],
    read: Callable[[Tensor, Tensor], Iterable[_T]],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Autocast = nullcontext,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[_T]:
    """What ``read`` makes of a model's logits, row by row, in the order of ``rows``.

    Args:
        model: a causal LM; run in eval mode without gradients, its modes come back.
        rows: tokens and labels, -100 where nothing is scored; in any order, longest are run first.
        read: logits (B, T, V) and labels (B, T), on one device -> something for each of the B rows. Position t of the
            logits predicts label t + 1; padding is on the right and has label -100.
        batch_size: rows per forward pass.
        pad_token_id: for padding; never attended.
        autocast: makes the context to run the model in.
        advance: called with the number of rows after every pass.
    """
    found: dict[int, _T] = {}
    collate = SequenceCollator(pad_token_id)
    with frozen(model):
        for some in by_length([len(row["input_ids"]) for row in rows], batch_size):
            batch = to_device(collate([rows[i] for i in some]), model)
            with autocast():
                logits = logits_of(model, batch)
            # Offloaded shards are elsewhere than what they compute.
            found.update(zip(some, read(logits, batch["labels"].to(logits.device)), strict=True))
            advance(len(some))
    return [found[i] for i in range(len(rows))]


def logits_of(model: nn.Module, batch: Mapping[str, Tensor], params: Mapping[str, Tensor] | None = None) -> Tensor:
    """(B, T, V) for ``input_ids`` and ``attention_mask`` (B, T); with ``params``, by name, instead of the model's."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    output = functional_call(model, dict(params), args=(), kwargs=inputs) if params else model(**inputs)
    return output.logits


def to_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch where the model's parameters are."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches, longest first: little padding, and a batch that does not fit in memory shows at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
