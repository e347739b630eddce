"""ROUGE by hand: recall against the reference, stemmed."""

from __future__ import annotations

import pytest

from gru_fast.metrics.rouge import rouge


def test_recall_is_of_the_reference() -> None:
    found = rouge("He was born in Rome.", "In Rome he was")
    assert found.rouge1_recall == pytest.approx(4 / 5)
    assert found.rougeL_recall == pytest.approx(2 / 5)
    assert found.rougeL_f1 == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))


def test_running_on_costs_no_recall() -> None:
    assert rouge("Paris", "Answer: It is Paris. And then a long story").rougeL_recall == 1.0


def test_words_are_stemmed_unless_asked_otherwise() -> None:
    assert rouge("she writes novels", "she write novel").rougeL_recall == 1.0
    assert rouge("she writes novels", "she write novel", stemmer=False).rougeL_recall == pytest.approx(1 / 3)


def test_an_empty_generation_scores_zero() -> None:
    assert rouge("Paris", "") == rouge("Paris", " ...")
    assert rouge("Paris", "").rougeL_recall == 0.0
