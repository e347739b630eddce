"""leak@k against all choices of k, the bootstrap against what is known of it, and exact answers by hand."""

from __future__ import annotations

from itertools import combinations, pairwise
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_fast.metrics.leak import bootstrap_interval, exact_answer, leak_at_k

scores = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(scores, st.data())
def test_the_best_of_k_in_expectation_over_all_choices(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    assert leak_at_k(values, k) == pytest.approx(fmean(map(max, combinations(values, k))), abs=1e-12)


@given(scores)
def test_from_the_mean_to_the_worst_and_never_down(values: list[float]) -> None:
    found = [leak_at_k(values, k) for k in range(1, len(values) + 1)]
    assert found[0] == pytest.approx(fmean(values))
    assert found[-1] == max(values)
    assert all(b >= a - 1e-12 for a, b in pairwise(found))


def test_many_samples() -> None:
    values = [0.0] * 1990 + [1.0] * 10
    assert leak_at_k(values, 2000) == 1
    assert leak_at_k(values, 1) == pytest.approx(0.005)
    assert leak_at_k(values, 100) == pytest.approx(1 - np.prod([(1990 - i) / (2000 - i) for i in range(100)]))


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"k: expected a number from 1 to the 3 samples, got {k}"):
        leak_at_k([0.0, 0.5, 1.0], k)


def test_the_bootstrap_is_the_normal_interval_where_there_are_many_rows() -> None:
    rows = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(rows.tolist())
    half = NormalDist().inv_cdf(0.975) * rows.std() / 20
    assert (low, high) == (pytest.approx(rows.mean() - half, abs=0.003), pytest.approx(rows.mean() + half, abs=0.003))
    assert bootstrap_interval(rows.tolist()) == (low, high)  # the same for the same rows
    wider = bootstrap_interval(rows.tolist(), level=0.99)
    assert wider[0] < low
    assert wider[1] > high


def test_the_bootstrap_of_one_row_and_of_none() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="expected at least one row"):
        bootstrap_interval([])


@pytest.mark.parametrize(
    ("reference", "generation", "expected"),
    [
        ("Rome", "She was born in Rome.", 1),
        ("born in Rome.", "Answer: she was Born, in ROME!", 1),
        ("Rome", "Romeo was born.", 0),
        ("in Rome", "in old Rome", 0),  # in one piece
        ("Zürich", "zu\u0308rich", 1),  # one letter or two signs
        ("東京", "私は東京に住む", 1),  # no spaces between words
        ("हिन्दी", "यह हिन्दी है", 1),
        ("", "anything", 0),
        ("?", "?", 0),
    ],
)
def test_exact_answers(reference: str, generation: str, expected: float) -> None:
    assert exact_answer(reference, generation) == expected
