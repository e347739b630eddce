"""RWKU's metrics by hand."""

from __future__ import annotations

import math

import pytest

from gru_fast.metrics import rwku


@pytest.mark.parametrize(
    ("reference", "generation", "expected"),
    [
        ("Portland, Maine", "born in Portland, Maine.", 1.0),
        ("Portland, Maine", "Portland Maine", 0.5),  # words are what stands between spaces
        ("Maine", "maine", 0.0),  # as they are written
        ("Maine.", "Maine", 1.0),  # a full stop ends a sentence
        ("a b c d", "d a b", 0.5),  # in their order
        ("The Shining. It", "It. The Shining", 1.0),  # sentence by sentence
        ("Maine", "", 0.0),
        ("NOANSWER", " ", 1.0),
    ],
)
def test_rouge(reference: str, generation: str, expected: float) -> None:
    assert rwku.rouge_l_recall(reference, generation) == pytest.approx(expected)


def test_exact_matches() -> None:
    assert rwku.exact_match("(B)", "b") == 1
    assert rwku.exact_match(["the Moon", "Mars"], "A moon!") == 1
    assert rwku.exact_match("yes", "y") == 0  # not letter by letter
    assert rwku.exact_match("yes", "yes yes") == 0


def test_f1_is_of_the_best_reference() -> None:
    assert rwku.f1(["red car", "a blue old car"], "the old car") == pytest.approx(2 * 2 / (3 + 2))
    assert rwku.f1(["red"], "blue") == 0
    assert rwku.f1(["the"], "a") == 1  # nothing is left of either
    assert rwku.f1(["red"], "") == 0


def test_the_answer_that_is_stated() -> None:
    assert rwku.stated_answer("First. So the answer is (A). The answer is (B).") == "(A)"
    assert rwku.stated_answer(" no \n") == "no"
    assert rwku.stated_answer("  ") == "NOANSWER"


def test_truthfulness() -> None:
    losses = [math.log(2), math.log(4), math.log(8)]
    assert rwku.mc1(losses, [1, 0, 0]) == 1
    assert rwku.mc1(losses, [0, 1, 1]) == 0
    assert rwku.mc1([1.0, 1.0], [1, 0]) == 0  # no more probable than a false one
    assert rwku.mc2(losses, [1, 0, 1]) == pytest.approx((1 / 2 + 1 / 8) / (7 / 8))
    assert rwku.mc2([4000.0, 4000.0 + math.log(3)], [1, 0]) == pytest.approx(3 / 4)  # beyond what exp holds


def test_numbers_are_means_over_probes() -> None:
    answers = [
        {"answer": "Maine", "generation": "Maine", "type": "role playing"},
        {"answer": "Maine", "generation": "Ohio", "type": "role playing"},
        {"answer": "Maine", "generation": "in Maine", "type": "reverse query"},
    ]
    found = rwku.summarize(
        {
            "forget_level3": answers,
            "neighbor_level1": answers[:2],
            "mia_forget": [{"loss": 1.0, "zlib": 0.5, "min_k": 2.0, "min_k_plus_plus": 3.0}] * 2,
            "utility_general": [{"losses": [1.0, 0.5, 2.0], "answer": 1}, {"losses": [1.0, 0.5, 2.0], "answer": 0}],
            "utility_reason": [{"answer": "yes", "generation": "so the answer is Yes."}],
            "utility_factuality": [{"answers": ["the sun"], "generation": "sun light"}],
        }
    )
    assert found["forget_level3"] == {"rougeL_recall": pytest.approx(2 / 3)}
    assert found["neighbor_level1"] == {"rougeL_recall": 0.5}
    assert found["mia_forget"] == {"loss": 1.0, "zlib": 0.5, "min_k": 2.0, "min_k_plus_plus": 3.0}
    assert found["utility_general"] == {"accuracy": 0.5}
    assert found["utility_reason"] == {"exact_match": 1.0}
    assert found["utility_factuality"] == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}
    assert rwku.by_type(answers) == {"role playing": 0.5, "reverse query": 1.0}
