"""Extraction strength and exact memorization: against their definitions, written out."""

from __future__ import annotations

import itertools

import pytest

from gru_fast.metrics.memorization import exact_memorization, extraction_strength, extraction_strength_unified
from gru_fast.metrics.scores import TextRecord

ALL = ["".join(bits) for n in range(1, 7) for bits in itertools.product("01", repeat=n)]


def but_last(correct: str) -> str:
    return correct[:-1] if len(correct) > 1 else correct


@pytest.mark.parametrize("correct", ALL)
def test_extraction_strength_is_the_least_prefix_that_the_model_completes(correct: str) -> None:
    seen = but_last(correct)
    least = next(k for k in range(len(seen) + 1) if all(bit == "1" for bit in seen[k:]))
    assert extraction_strength(TextRecord(0, correct=correct)) == pytest.approx(1 - least / len(seen), abs=1e-15)


@pytest.mark.parametrize("correct", ALL)
def test_exact_memorization_is_the_share_of_right_tokens(correct: str) -> None:
    seen = but_last(correct)
    share = sum(map(int, seen)) / len(seen)
    assert exact_memorization(TextRecord(0, correct=correct)) == share


def test_nothing_extracted_is_zero_and_not_one_token() -> None:
    """The unified framework stops its search one short: a text of which nothing is completed has 1/n there."""
    nothing = TextRecord(0, correct="1100" + "1")
    assert extraction_strength(nothing) == 0.0
    assert extraction_strength_unified(nothing) == 0.25
    for correct in ALL:
        seen = but_last(correct)
        # As that code goes: k = 0 .. n-1, the last one if none fits.
        found = next((k for k in range(len(seen)) if "0" not in seen[k:]), len(seen) - 1)
        assert extraction_strength_unified(TextRecord(0, correct=correct)) == pytest.approx(1 - found / len(seen))


def test_without_tokens_there_is_no_score() -> None:
    for metric in (exact_memorization, extraction_strength):
        with pytest.raises(ValueError, match="correct: expected at least one label token"):
            metric(TextRecord(0, correct=""))
        with pytest.raises(ValueError, match="no correct; it was not scored"):
            metric(TextRecord(0))
