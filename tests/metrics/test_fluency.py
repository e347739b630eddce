"""Fluency: entropies and repetition by hand, and what a collapsed model gets."""

from __future__ import annotations

import pytest

from gru_fast.metrics.fluency import fluency, gibberish, repetition
from gru_fast.metrics.scores import TextRecord


def written(text: str) -> TextRecord:
    return TextRecord(0, generation=text)


def test_fluency_by_hand() -> None:
    # Pairs: ab, ba, ab; triples: aba, bab.
    pairs, triples = 2 / 3 * 0.5849625007211562 + 1 / 3 * 1.584962500721156, 1.0
    assert fluency(written("a b a b")) == pytest.approx((2 / 3 * pairs + 4 / 3 * triples) / 2, abs=1e-12)
    # n words, all different: log2(n - 1) and log2(n - 2).
    assert fluency(written("one two three four five six.")) == pytest.approx(
        (2 / 3 * 2.584962500721156 + 4 / 3 * 2.321928094887362) / 2, abs=1e-12
    )


@pytest.mark.parametrize("text", ["", "word", "no no no no no no no", "!!!!!!!!"])
def test_repetition_of_one_word_has_no_entropy(text: str) -> None:
    assert fluency(written(text)) == 0.0


def test_repetition_by_hand() -> None:
    assert repetition(written("a b c d a b c d")) == pytest.approx(1 - 4 / 5)
    assert repetition(written("a b c d e f g")) == 0.0
    assert repetition(written("no " * 103)) == pytest.approx(0.99)
    assert repetition(written("a b c")) == 0.0
    assert repetition(written("")) == 0.0
    assert repetition(written("a a a"), n=1) == pytest.approx(2 / 3)


def test_signs_are_words() -> None:
    assert repetition(written("..........")) == pytest.approx(1 - 1 / 7)
    assert repetition(written("Rome, Rome, Rome, Rome,"), n=2) == pytest.approx(1 - 2 / 7)


def test_gibberish_is_what_the_classifier_said() -> None:
    assert gibberish(TextRecord(0, clean=0.25)) == 0.25
    with pytest.raises(ValueError, match="no clean; it was not scored"):
        gibberish(TextRecord(0))
