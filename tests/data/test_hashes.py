"""Hashes that evaluations on disk were written with: they must never change."""

from __future__ import annotations

from gru_fast.data.hashes import hash_of, joined_hash
from gru_fast.data.sequences import content_hash
from gru_fast.evaluation.asking import Prompt


def test_values_of_records_that_are_on_disk() -> None:
    assert joined_hash(["ab", "c"]) == "d8bb14d833d59559"
    assert joined_hash(["ab", "c"], num_bytes=16) == "cf4ab791c62b8d2b2109c90275287816"
    assert hash_of(["ab", "c"]) == "1dea1e23456987a4"
    assert content_hash({"input_ids": [1, 2], "labels": [-100, 2]}) == "a57a0dbc99dc46a140871e8b0156ded0"


def test_joined_texts_are_one_text_and_others_are_not() -> None:
    assert joined_hash(["ab", "c"]) == joined_hash(["a", "bc"]) != joined_hash(["c", "ab"])
    assert len({hash_of(["ab", "c"]), hash_of(["a", "bc"]), hash_of(["abc"]), hash_of(["c", "ab"])}) == 4


def test_a_prompt_is_a_sequence_without_labels() -> None:
    assert Prompt([1, 2], 5).content == content_hash({"input_ids": [1, 2], "labels": []})
    assert Prompt([1, 2], 5).content != Prompt([2, 1], 5).content
