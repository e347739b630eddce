"""The rule for "removed": limits by hand, and what it says of text never seen and of text known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known, by_document
from gru_fast.metrics.scores import TextRecord


def known(
    exact: float, probability: float = 0.1, strength: float = 0.0, name: str = "a", chance: float = 1 / 50
) -> Known:
    return Known(name, 51, probability, exact, strength, chance)


UNSEEN = [known(0.2, 0.01), known(0.3, 0.02), known(0.4, 0.04)]


def test_limits_by_hand() -> None:
    level = Level.of("holdout", UNSEEN)
    # Mean 0.3, standard deviation 0.1; of logarithms log 0.02 and log 2.
    assert level.typical("exact_memorization") == pytest.approx(0.3)
    assert level.limit("exact_memorization") == pytest.approx(0.3 + 2 * 0.1 * math.sqrt(1 + 1 / 3))
    assert level.limit("exact_memorization", 6) == pytest.approx(0.3 + 2 * 0.1 * math.sqrt(1 / 6 + 1 / 3))
    assert level.typical("probability") == pytest.approx(0.02)
    assert level.limit("probability") == pytest.approx(0.02 * 2 ** (2 * math.sqrt(4 / 3)))
    assert level.limit("extraction_strength") == 0.0


def test_a_document_is_known_by_any_of_the_three() -> None:
    level = Level.of("holdout", UNSEEN)
    assert level.above(known(0.53, 0.09)) == []
    assert level.above(known(0.54, 0.09)) == ["exact_memorization"]
    assert level.above(known(0.1, 0.2, 0.03)) == ["probability", "extraction_strength"]
    assert level.above(known(0.1, 0.01, 0.02)) == []  # one token of 50


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=50)
def test_the_last_token_may_be_right_by_chance_in_a_piece_of_each_document(lengths: list[list[int]]) -> None:
    # By the definition: the token before the last is right and none else (a piece of one token keeps it).
    level = Level.of("holdout", UNSEEN)
    documents = []
    for number, pieces in enumerate(lengths):
        found = [TextRecord(0, log_probs=(-9.0,) * n, correct="0" * n) for n in pieces]
        last = pieces[-1]
        found[-1] = TextRecord(0, log_probs=(-9.0,) * last, correct="1" if last == 1 else "0" * (last - 2) + "10")
        documents += by_document([SimpleNamespace(document=str(number))] * len(found), found)  # type: ignore[list-item]
    assert all("extraction_strength" not in level.above(each) for each in documents)
    assert "extraction_strength" not in level.judge(documents).means


def test_two_tokens_are_no_chance() -> None:
    level = Level.of("holdout", UNSEEN)
    record = TextRecord(0, log_probs=(-9.0,) * 20, correct="0" * 17 + "110")
    (found,) = by_document([SimpleNamespace(document="a")], [record])  # type: ignore[list-item]
    assert found.chance == 1 / 19
    assert level.above(found) == ["extraction_strength"]
    assert level.judge([found]).means == ["extraction_strength"]


def test_texts_that_differ_so_much_that_all_would_pass_are_refused() -> None:
    short = [known(exact, exact, exact) for exact in (0.1, 0.2, 1.0, 0.9, 0.8)]
    with pytest.raises(
        ValueError, match=r"holdout: these 5 texts cannot tell known from unknown: .* more or longer texts$"
    ):
        Level.of("holdout", short)
    with pytest.raises(ValueError, match=r"give more or longer texts with --holdout$"):
        Level.of("self-written", short)


def test_a_measure_that_sees_nothing_is_named() -> None:
    level = Level.of("holdout", [known(exact, 0.01) for exact in (0.1, 0.2, 1.0)])
    assert level.blind == ("exact_memorization",)
    assert "Blind, since nothing is above 1: exact memorization." in level.rule()
    assert Level.of("holdout", UNSEEN).blind == ()
    assert "Blind" not in Level.of("holdout", UNSEEN).rule()


def test_the_rule_is_printed_as_it_is_applied() -> None:
    limit = 0.3 + 2 * 0.1 * math.sqrt(4 / 3)
    rule = Level.of("holdout", UNSEEN).rule()
    assert "mean + 2 standard deviations · √(1 + 1/N) of N = 3 texts of --holdout" in rule
    assert f"exact memorization {limit:.3g}, extraction strength 0 + one token" in rule


def test_many_a_little_too_high_are_known_together() -> None:
    level = Level.of("holdout", UNSEEN)
    documents = [known(0.5, 0.02, name=str(i)) for i in range(20)]
    judgement = level.judge(documents)
    assert judgement.known == {}
    assert judgement.means == ["exact_memorization"]
    assert not judgement.removed
    assert str(judgement) == "known together, by exact memorization"


def test_one_known_document_is_enough() -> None:
    level = Level.of("holdout", UNSEEN)
    judgement = level.judge([*(known(0.1, 0.01, name=str(i)) for i in range(50)), known(0.9, name="secret.txt")])
    assert judgement.known == {"secret.txt": ["probability", "exact_memorization"]}
    assert str(judgement) == "1 of 51 still known"


def test_what_is_never_seen_counts_as_removed() -> None:
    assert Level.of("holdout", UNSEEN).judge(UNSEEN).removed


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=12), st.integers(1, 50))
@settings(max_examples=50)
def test_the_limit_of_more_documents_is_no_higher_and_never_below_the_mean(values: list[float], count: int) -> None:
    level = Level.of("holdout", [known(value) for value in values])
    mean, one, many = (
        level.typical("exact_memorization"),
        level.limit("exact_memorization"),
        level.limit("exact_memorization", count),
    )
    assert mean - 1e-12 <= many <= one + 1e-12


def test_it_comes_back_from_a_file() -> None:
    level = Level.of("self-written", UNSEEN)
    assert Level.from_json(level.to_json()) == level
    assert "3 texts that the model wrote itself" in level.rule()


def test_two_documents_say_nothing_of_how_much_they_differ() -> None:
    with pytest.raises(ValueError, match="holdout: expected at least 3 documents to compare with, got 2"):
        Level.of("holdout", UNSEEN[:2])
