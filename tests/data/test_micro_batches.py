"""Pieces of a batch: their weighted mean is that of the whole, whatever it is over; what they leave out."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru_fast.data.micro_batches import in_attended, in_labels, in_rows, micro_batches
from gru_fast.data.sequences import SequenceCollator


def batch(count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    return SequenceCollator(0)(tiny.rows(count, seed=seed))


@given(count=st.integers(1, 9), rows=st.integers(1, 10), trim=st.booleans())
def test_the_weighted_mean_of_the_pieces_is_that_of_the_whole(count: int, rows: int, trim: bool) -> None:
    part = batch(count)
    means = {
        in_rows: lambda p: p["input_ids"][:, 0].double().mean(),  # one value a row
        in_labels: lambda p: p["labels"][:, 1:][p["labels"][:, 1:] != -100].double().mean(),
        in_attended: lambda p: p["input_ids"][p["attention_mask"] == 1].double().mean(),
    }
    for weigh, mean in means.items():
        pieces = micro_batches(part, rows, weigh, trim=trim)
        assert [len(piece["input_ids"]) for _, piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
        assert sum(len(piece["input_ids"]) for _, piece in pieces) == count
        found = sum(float(share) * float(mean(piece)) for share, piece in pieces)
        assert found == pytest.approx(float(mean(part)), rel=1e-6)


def test_columns_that_no_row_attends_to_are_left_out_and_no_others() -> None:
    part = {
        "input_ids": torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0], [5, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]),  # the second: on the left too
        "labels": torch.tensor([[-100, 6, -100, -100], [-100, 6, 7, -100], [-100, 6, 7, 8]]),
        "reference_log_probs": torch.tensor([1.0, 2.0, 3.0]),
    }
    first, second = (piece for _, piece in micro_batches(part, 2))
    assert first["input_ids"].tolist() == [[5, 6, 0], [5, 6, 7]]
    assert first["attention_mask"].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert second["labels"].tolist() == [[-100, 6, 7, 8]]
    assert second["reference_log_probs"].tolist() == [3.0]
    assert [round(float(share), 6) for share, _ in micro_batches(part, 2)] == [0.5, 0.5]  # 3 of 6 labels each
    assert micro_batches(part, 2, trim=False)[0][1]["input_ids"].shape == (2, 4)


def test_a_part_that_is_small_enough_is_the_very_same() -> None:
    part = batch(3)
    assert micro_batches(part, 3) == [(1.0, part)]
    assert micro_batches(part, 3)[0][1] is part
