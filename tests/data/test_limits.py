"""Rows that a model cannot read: at what number they are refused, when, and in which words."""

from __future__ import annotations

import pytest

from gru_fast.data.limits import Limits
from gru_fast.data.pairs import UnlearnDataset
from gru_fast.data.sequences import Encoded, LazyRows


def row(count: int, top: int = 3) -> Encoded:
    ids = [top, *[3] * (count - 1)]
    return {"input_ids": ids, "labels": list(ids)}


def test_up_to_the_limit_and_no_further() -> None:
    limits = Limits(tokens=10, positions=4)
    limits.check("row 7", [9, 0, 0, 0])
    limits.check("row 7", [])
    Limits().check("row 7", [10**6] * 100)
    with pytest.raises(
        ValueError, match=r"^row 7: 5 tokens are more than the model's 4 positions; give --max-length 4 or"
    ):
        limits.check("row 7", [0] * 5)
    with pytest.raises(
        ValueError, match=r"^row 7: has the token 10, and the model embeddings of 0 to 9 alone: .*--token"
    ):
        limits.check("row 7", [1, 10, 2])


def test_what_is_written_counts_but_for_its_last_token() -> None:
    limits = Limits(positions=4)
    limits.check("row", [0, 0], 3)
    limits.check("row", [0, 0, 0, 0], 1)
    with pytest.raises(
        ValueError, match=r"^row: 2 tokens and 4 to write are more .* 4 positions; give --new 3 or leave"
    ):
        limits.check("row", [0, 0], 4, option=None, more_option="--new")
    with pytest.raises(ValueError, match=r"^row: 5 tokens and 1 to write are more .* 4 positions; leave the row out"):
        limits.check("row", [0] * 5, 1, option=None, more_option="--new")


def test_rows_of_a_dataset_are_refused_by_part_and_number() -> None:
    dataset = UnlearnDataset([row(3), row(4)], [row(2), row(4), row(5)])
    assert dataset.fit(Limits(10, 5)) is dataset
    with pytest.raises(ValueError, match=r"^retain\[2\]: 5 tokens are more than the model's 4 positions"):
        dataset.fit(Limits(10, 4))
    with pytest.raises(ValueError, match=r"^forget\[1\]: 4 tokens are more than the model's 3 positions"):
        dataset.fit(Limits(10, 3))
    with pytest.raises(ValueError, match=r"^forget\[1\]: has the token 12"):
        UnlearnDataset([row(3), row(3, top=12)]).fit(Limits(10, 5))


def test_answers_that_are_drawn_are_looked_at_when_they_are() -> None:
    dataset = UnlearnDataset([row(3)], idk=lambda index, draw: row(6)).fit(Limits(10, 5))
    with pytest.raises(ValueError, match=r"^idk\(0, ...\): 6 tokens are more than the model's 5 positions"):
        dataset[0]


def lazy(read: list[int], lengths: list[int], most: int | None, top: int = 3) -> LazyRows:
    def encode(length: int) -> Encoded:
        read.append(length)
        return row(length, top)

    return LazyRows(lengths, encode, "texts", most, "--text-length")


def test_rows_that_are_tokenized_later_are_read_only_if_some_could_be_too_long() -> None:
    read: list[int] = []
    dataset = UnlearnDataset(lazy(read, [3, 5, 4], most=5))
    dataset.fit(Limits(10, 5))
    assert read == []
    with pytest.raises(ValueError, match=r"^forget\[1\]: 5 tokens are .* 4 positions; give --text-length 4"):
        dataset.fit(Limits(10, 4))
    assert read == [3, 5]  # to the first that is too long
    UnlearnDataset(lazy(read, [3, 3], most=5)).fit(Limits(10, 4))  # all are shorter


def test_a_token_of_a_row_that_is_tokenized_later() -> None:
    dataset = UnlearnDataset([row(3)], lazy([], [3, 3], most=5, top=11)).fit(Limits(10, 5))
    with pytest.raises(ValueError, match=r"^retain\[[01]\]: has the token 11"):
        dataset[0]
