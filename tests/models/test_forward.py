"""Where a model is run on rows: batches by length, each row read for itself, the model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from gru_fast.data.sequences import SequenceCollator
from gru_fast.models.forward import by_length, logits_of, of_each_row, to_device


def test_longest_first_and_equal_lengths_in_their_order() -> None:
    assert list(by_length([3, 9, 3, 5, 9], 2)) == [[1, 4], [3, 0], [2]]
    assert list(by_length([], 2)) == []
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        list(by_length([1], 0))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_each_row_gets_what_was_read_of_it(batch_size: int) -> None:
    """Whatever the batch: the logits of its own tokens, by the model in eval mode and without a graph."""
    model, rows = tiny.llama().train(), tiny.rows(7, seed=2)
    seen: list[int] = []
    steps: list[int] = []

    def read(batch: dict[str, Tensor]) -> list[tuple[list[int], Tensor]]:
        assert not model.training
        logits, labels = logits_of(model, batch), batch["labels"]
        assert not logits.requires_grad
        assert logits.shape[:2] == labels.shape
        seen.append(labels.shape[1])
        return [(row.tolist(), one) for row, one in zip(labels, logits, strict=True)]

    found = of_each_row(model, rows, read, batch_size=batch_size, pad_token_id=0, advance=steps.append)
    assert model.training
    assert seen == sorted(seen, reverse=True)
    assert sum(steps) == len(rows)
    assert max(steps) == min(batch_size, len(rows))
    model.eval()
    for row, (labels, logits) in zip(rows, found, strict=True):
        count = len(row["labels"])
        assert labels == row["labels"] + [-100] * (len(labels) - count)
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(logits[:count], alone, atol=1e-5, rtol=1e-4)


def test_what_is_read_is_one_thing_a_row() -> None:
    with pytest.raises(ValueError, match="argument"):
        of_each_row(tiny.llama(), tiny.rows(2, 0), lambda batch: [1], batch_size=2, pad_token_id=0)
    assert of_each_row(tiny.llama(), [], lambda batch: [1], batch_size=2, pad_token_id=0) == []


def test_padding_is_never_attended() -> None:
    model = tiny.llama()

    def read(batch: dict[str, Tensor]) -> Any:
        found = zip(logits_of(model, batch), batch["labels"], strict=True)
        return [one[row != -100].tolist() for one, row in found]

    rows = tiny.rows(4, seed=5)
    one, other = (of_each_row(model, rows, read, batch_size=4, pad_token_id=pad) for pad in (0, 2))
    assert one == other


def test_other_weights_can_be_passed_by_name() -> None:
    model, other = tiny.llama(), tiny.llama(seed=1)
    batch = to_device(SequenceCollator(0)(tiny.rows(2, 0)), model)
    found = logits_of(model, batch, dict(other.named_parameters()))
    assert torch.equal(found, logits_of(other, batch))
    assert not torch.equal(found, logits_of(model, batch))
