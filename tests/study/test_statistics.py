"""What GRU changes: pairs, counts, means and intervals, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from study_results import run, small, study

from gru_fast.study import verdict
from gru_fast.study.results import ABLATION, CLIPPED, GRU, SENSITIVITY, Calibrated
from gru_fast.study.statistics import (
    BOTH,
    MISSING,
    NONE,
    REMOVAL,
    RETENTION,
    at_equal_retention,
    bootstrap,
    group,
    groups,
    oriented,
    pairs,
)


def test_pairs_by_hand() -> None:
    found = [(each.method, each.seed, each.retention, each.removal, each.outcome) for each in pairs(small())]
    assert found == [
        ("GA", 1, 0.25, 2.0, BOTH),
        ("GA", 2, 0.0, 4.0, REMOVAL),
        ("NPO", 1, 0.25, -1.0, RETENTION),
        ("NPO", 2, None, None, MISSING),
    ]
    assert [each.is_tie for each in pairs(small())] == [False, True, False, False]
    assert [each.missing for each in pairs(small())] == ["", "", "", "npo-gru-forget05-2 has failed"]


def test_counts_and_means_by_hand() -> None:
    whole = group(pairs(small()))
    assert [whole.count(outcome) for outcome in (BOTH, RETENTION, REMOVAL, NONE, MISSING)] == [1, 1, 1, 0, 1]
    assert (whole.ties, whole.known, len(whole.pairs)) == (1, 3, 4)
    assert whole.retention.mean == pytest.approx(0.5 / 3)
    assert whole.removal.mean == pytest.approx(5.0 / 3)


def test_groups_are_methods_on_splits_in_the_order_of_the_recipe() -> None:
    late = run("GA", 0.5, -5.0, split="forget10"), run("GA", 0.5, -6.0, split="forget10", variant=GRU)
    results = small()
    found = groups(replace(results, splits=["forget10", "forget05"], runs=[*results.runs, *late]))
    assert [(each.split, each.method, len(each.pairs)) for each in found] == [
        ("forget10", "GA", 1),
        ("forget05", "GA", 2),
        ("forget05", "NPO", 2),
    ]
    assert found[0].pairs[0].outcome == NONE


def test_an_interval_over_two_seeds_is_their_two_values() -> None:
    """Of the four equally likely resamples one is the smaller value twice, one the larger: a quarter each."""
    assert bootstrap([[1.0], [3.0]]) == (1.0, 3.0)
    ga, npo = groups(small())
    assert (ga.removal.low, ga.removal.high, ga.removal.seeds) == (2.0, 4.0, 2)
    assert (npo.removal.low, npo.removal.high, npo.removal.seeds) == (None, None, 1)
    assert "one seed" in npo.removal.why


def test_pairs_of_a_seed_are_drawn_together() -> None:
    """Seed 1: mean (2 - 1) / 2; seed 2: 4. Both twice, or each once: (2 - 1 + 4) / 3, never 2 or -1 alone."""
    whole = group(pairs(small()))
    assert (whole.removal.low, whole.removal.high) == (0.5, 4.0)


def test_an_interval_over_many_seeds_is_that_of_the_normal_distribution() -> None:
    values = [math.sin(7 * i) for i in range(200)]
    mean = sum(values) / 200
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / 200
    low, high = bootstrap([[value] for value in values])
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_without_a_pair_there_is_no_mean_and_it_says_why() -> None:
    change = group(pairs(study([run("GA", 0.5, -1.0)]))).retention
    assert (change.mean, change.low, change.seeds) == (None, None, 0)
    assert change.why == "no pair of which both runs have scores"


@pytest.mark.parametrize(
    ("heading", "plain", "gru", "gain"),
    [
        ("FQ (ln p)", -6.0, -4.0, 2.0),
        ("WMDP Cyber", 0.4, 0.25, 0.15),
        ("PrivLeak", -57.0, 10.0, 47.0),
        ("PrivLeak", 5.0, -10.0, -5.0),
    ],
)
def test_changes_are_turned_so_that_plus_is_better(heading: str, plain: float, gru: float, gain: float) -> None:
    scored = [replace(run("GA", variant=v), scores={"MU": 0.5, heading: x}) for v, x in (("plain", plain), (GRU, gru))]
    plane = {"MU": "higher is better", heading: "removal"}
    (pair,) = pairs(study(scored, plane=plane))
    assert pair.removal == pytest.approx(gain)
    assert oriented(heading, gru) - oriented(heading, plain) == pytest.approx(gain)


@pytest.mark.parametrize("lost", [None, math.nan, -math.inf])
def test_a_score_that_is_no_number_makes_a_pair_missing_and_is_named(lost: float | None) -> None:
    (pair,) = pairs(study([run("GA", 0.5, -1.0), run("GA", 0.5, lost, variant=GRU)]))
    assert pair.outcome == MISSING
    assert pair.missing.startswith("ga-gru-forget05-1 has ")
    assert "FQ (ln p)" in pair.missing


def test_runs_of_other_uses_are_no_pairs() -> None:
    results = study(
        [
            run("GA", 0.5, -1.0),
            run("GA", 0.5, -1.0, variant=CLIPPED, uses=[ABLATION]),
            run("GA", 0.9, -0.5, variant=GRU, uses=[SENSITIVITY]),
        ]
    )
    assert pairs(results) == []


# ---- in words --------------------------------------------------------------------------------------------------------


def test_the_verdict_in_words() -> None:
    assert verdict.headline(small()) == (
        "GRU improves both MU and FQ (ln p) in 1 of 3 pairs, one of them in 2, none in 0."
    )
    assert verdict.sentences(small()) == [
        (
            "One of them improved: MU alone in 1, FQ (ln p) alone in 1. Ties, a change of exactly 0 that counts as not "
            "improved: 1."
        ),
        "Mean change of MU, + is better: +0.1667 [+0.0000, +0.2500] over 2 seeds, too few for a verdict by it.",
        ("Mean change of FQ (ln p), + is better: +1.67 [+0.50, +4.00] over 2 seeds, too few for a verdict by it."),
        "In the mean over seeds, both improve for 1 of 2 methods and splits.",
        "FQ (ln p) is worse with GRU in the mean for NPO on forget05 (-1.00).",
        "Missing of 4 pairs: 1. NPO, forget05, seed 2: npo-gru-forget05-2 has failed.",
    ]


def test_where_gru_is_worse_it_says_so() -> None:
    runs = [run("GA", mu, -5.0, seed=seed, variant=v) for seed in range(6) for v, mu in (("plain", 0.5), (GRU, 0.25))]
    words = verdict.sentences(study(runs))
    assert verdict.headline(study(runs)).endswith("in 0 of 6 pairs, one of them in 0, none in 6.")
    assert words[1].endswith("-0.2500 [-0.2500, -0.2500] over 6 seeds: worse with GRU, the interval leaves out 0.")
    assert "MU is worse with GRU in the mean for GA on forget05 (-0.2500 [-0.2500, -0.2500])." in words


def test_removal_at_the_same_retention() -> None:
    """At 0.9: -2 against -6, +4; at 0.95: -7 against -6, -1; at 0.85 GRU alone was calibrated."""

    def at(**removal: float) -> list[Calibrated]:
        return [Calibrated(int(name[1:]) / 100, 0.5, {"MU": 0.5, "FQ (ln p)": fq}) for name, fq in removal.items()]

    plain, gru = run("GA", 0.5, -9.0, calibrated=at(s90=-6.0, s95=-6.0)), at(s85=-1.0, s90=-2.0, s95=-7.0)
    results = study([plain, run("GA", 0.5, -9.0, variant=GRU, calibrated=gru)])
    assert sorted(at_equal_retention(results)) == [-1.0, 4.0]
    assert verdict.sentences(results)[-1] == (
        "Calibrated to the same share of the original's MU (UWC), FQ (ln p) is better with GRU in 1 of 2 comparisons "
        "of a pair at a share, by +1.50 in the mean."
    )


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(5, "too few for a verdict by it."), (6, "over 6 seeds: better with GRU, the interval leaves out 0.")],
)
def test_few_seeds_that_agree_are_no_verdict(seeds: int, said: str) -> None:
    runs = [run("GA", mu, -5.0, seed=n, variant=v) for n in range(seeds) for v, mu in (("plain", 0.25), (GRU, 0.5))]
    assert verdict.sentences(study(runs))[1].endswith(said)


def test_seeds_that_do_not_agree() -> None:
    changed = [0.5 + change for change in (0.25, -0.25, 0.125, -0.125, 0.0, 0.0625)]
    runs = [run("GA", 0.5, -5.0, seed=n) for n in range(6)]
    runs += [run("GA", mu, -5.0, seed=n, variant=GRU) for n, mu in enumerate(changed)]
    assert verdict.sentences(study(runs))[1].endswith("over 6 seeds: not clear, the interval holds 0.")


def test_nothing_to_compare() -> None:
    assert verdict.headline(study([])).endswith("nothing can be said.")
    assert verdict.sentences(study([])) == []
