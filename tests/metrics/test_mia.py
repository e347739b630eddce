"""Membership inference: the AUC counted by hand and by scipy, Min-K, every attack's formula and sign."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from gru_fast.metrics import mia, scores
from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.extra import summarize
from gru_fast.metrics.scores import TextRecord

SCORES = st.lists(st.integers(-3, 3) | st.floats(allow_nan=False), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auc_counts_pairs_and_halves_ties(forget: list[float], holdout: list[float]) -> None:
    pairs = [(h > f) + (h == f) / 2 for f, h in itertools.product(forget, holdout)]
    assert mia.auc(forget, holdout) == sum(pairs) / len(pairs)
    assert mia.auc(holdout, forget) == pytest.approx(1 - mia.auc(forget, holdout), abs=1e-15)


def test_auc_is_that_of_mann_whitney() -> None:
    draw = np.random.default_rng(0)
    forget, holdout = draw.normal(0, 1, 300).round(1), draw.normal(0.5, 1, 200).round(1)
    expected = mannwhitneyu(holdout, forget).statistic / (300 * 200)
    assert mia.auc(forget, holdout) == pytest.approx(expected, abs=1e-14)


def test_auc_needs_scores_that_are_numbers() -> None:
    assert mia.auc([1.0], [math.inf]) == 1.0
    with pytest.raises(ValueError, match="forget: expected at least one value, got none"):
        mia.auc([], [1.0])
    with pytest.raises(ValueError, match="holdout: expected numbers, got NaN at 1"):
        mia.auc([1.0], [1.0, math.nan])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(0.4, 2.5), (0.2, 3.0), (0.19, 3.0), (0.01, 3.0), (0.59, 2.5), (0.6, 2.0), (1.0, 6.6 / 5)],
)
def test_min_k_takes_the_lowest_whole_number_of_tokens(k: float, expected: float) -> None:
    assert mia.min_k([-0.5, -3.0, -1.0, -2.0, -0.1], k) == pytest.approx(expected, abs=1e-15)


def test_min_k_refuses_what_is_no_share() -> None:
    for k in (0.0, -1.0, 1.5, 40):
        with pytest.raises(ValueError, match="k: expected a share of tokens above 0 and at most 1"):
            mia.min_k([-1.0], k)
    with pytest.raises(ValueError, match="log_probs: expected at least one value"):
        mia.min_k([])


def test_privleak_is_muse_of_its_own_auc() -> None:
    # MUSE: A = P(s_forget > s_holdout); a target that knows the forget set has A near 0, a good one A_ret.
    for ours, theirs in ((0.9, 0.5), (0.2, 0.47)):
        a_unl, a_ret = 1 - ours, 1 - theirs
        assert mia.privleak(ours, theirs) == pytest.approx(100 * (a_unl - a_ret) / a_ret, abs=1e-12)
    assert mia.privleak(0.5, 0.5) == 0.0
    assert mia.privleak(1.0, 0.5) == -100.0  # known through and through: under-unlearned
    assert mia.privleak(0.0, 0.5) == 100.0  # less known than what was never seen: over-unlearned
    with pytest.raises(ValueError, match=r"retained: expected an AUC below 1, got 1\.0"):
        mia.privleak(0.5, 1.0)


RECORD = TextRecord(
    index=3,
    log_probs=(-1.0, -4.0, -2.0, -0.5, -3.0, -9.0),
    correct="100101",
    vocab_means=(-2.0, -2.0, -2.0, -1.0, -1.0, -1.0),
    vocab_variances=(4.0, 1.0, 1.0, 0.25, 1e-9, 1.0),
    zlib_bytes=20,
    gradient_norm=0.75,
    reference_loss=2.0,
)


def test_every_attack_by_hand() -> None:
    loss = 19.5 / 6  # all label tokens
    expected = {
        "mia_loss": loss,
        "mia_zlib": loss / 20,
        "mia_reference": loss - 2.0,
        "mia_gradnorm": 0.75,
        # Without the last token: 2 of 5.
        "mia_min_k": 3.5,
        # z = 0.5, -2, 0, 1, -2 / 1e-3: the variance is at least 1e-6.
        "mia_min_k_plus_plus": (2000.0 + 2.0) / 2,
    }
    attacks = {name for name in scores.names() if scores.get(name).is_attack}
    assert attacks == set(expected)
    for name, score in expected.items():
        assert scores.get(name).score(RECORD) == pytest.approx(score, rel=1e-12), name


def test_a_lone_token_is_not_left_out() -> None:
    one = TextRecord(0, log_probs=(-2.0,), vocab_means=(-1.0,), vocab_variances=(4.0,))
    assert mia.min_k_score(one) == 2.0
    assert mia.min_k_plus_plus_score(one) == 0.5
    assert mia.loss_score(one) == 2.0


def test_a_known_text_scores_low() -> None:
    known = TextRecord(0, (-0.01,) * 5, "11111", (-0.1,) * 5, (0.5,) * 5, 30, 0.1, 2.0)
    unknown = TextRecord(0, (-3.0,) * 5, "00000", (-2.0,) * 5, (0.5,) * 5, 30, 4.0, 2.5)
    for name in scores.names():
        metric = scores.get(name)
        if metric.is_attack:
            assert metric.score(known) < metric.score(unknown), name


@pytest.mark.parametrize("constant", [-4.6051702, -3.0145678, -10.373491])  # of 7 digits, as records hold them
def test_a_model_that_gives_every_token_the_same_tells_nothing(constant: float) -> None:
    """Whatever the lengths of the texts: a mean of equal numbers is that number, to the last bit."""

    def texts(lengths: range) -> list[TextRecord]:
        return [
            TextRecord(i, (constant,) * n, "0" * n, (constant,) * n, (0.3,) * n, 50, 1.0, -constant)
            for i, n in enumerate(lengths)
        ]

    records = {"forget": texts(range(2, 40)), "holdout": texts(range(37, 70))}
    attacks = [name for name in scores.names() if scores.get(name).is_attack]
    found = summarize(attacks, records)
    assert {name: row["auc"] for name, row in found.items()} == dict.fromkeys(attacks, 0.5)


@given(st.lists(st.floats(-100, 0), min_size=1, max_size=20), st.randoms())
def test_means_do_not_depend_on_the_order(values: list[float], draw: random.Random) -> None:
    exact = float(sum(map(Fraction, values), Fraction(0)) / len(values))
    assert exact_mean(values) == exact
    shuffled = draw.sample(values, len(values))
    assert mia.loss_score(TextRecord(0, tuple(shuffled))) == mia.min_k(values, 1.0) == -exact
