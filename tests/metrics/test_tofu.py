"""TOFU's metrics: the published numbers, hand-worked rows, and what each must refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from gru_fast.metrics import tofu
from gru_fast.metrics.logs import read_log
from gru_fast.metrics.records import Record, Records, from_json, to_json

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).parents[2].parent / "shared"))
LOGS = SHARED / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"no published logs at {LOGS}")
MODELS = ("phi_full", "phi_retain90", "phi_retain95")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((LOGS / "golden.json").read_text())


@pytest.fixture(scope="module")
def published() -> dict[str, Records]:
    return {model: read_log(LOGS / f"{model}.json") for model in MODELS}


def row(index: int = 0, **values: Any) -> Record:
    """A record with losses by hand: answer 1, paraphrase 2, wrong answers 3 and 5."""
    given: dict[str, Any] = {
        "question": f"q{index}",
        "answer_loss": 1.0,
        "paraphrase_loss": 2.0,
        "perturbed_losses": (3.0, 5.0),
        "rougeL_recall": 0.5,
    }
    return Record(index=index, **{**given, **values})


def all_sets(**values: Any) -> Records:
    return {name: [row(i, **values) for i in range(3)] for name in ("forget", "retain", "real_authors", "world_facts")}


# ---- the published numbers -------------------------------------------------------------------------------------------


@needs_logs
@pytest.mark.parametrize("model", MODELS)
def test_model_utility_of_the_published_logs(model: str, golden: dict[str, Any], published: dict[str, Records]) -> None:
    expected, records = golden["models"][model], published[model]
    found = tofu.components(records)
    assert list(found) == list(expected["components_geo"])
    assert found == pytest.approx(expected["components_geo"], abs=1e-9)
    assert tofu.model_utility(records) == pytest.approx(expected["MU_geo"], abs=1e-9)
    assert tofu.model_utility(records, "arithmetic") == pytest.approx(expected["MU_arith"], abs=1e-9)
    arithmetic = tofu.components(records, "arithmetic")
    assert {key: arithmetic[key] for key in expected["truth_ratio_arith"]} == pytest.approx(
        expected["truth_ratio_arith"], abs=1e-9
    )
    found = tofu.forget_scores(records)
    assert {name: found[name] for name in expected["forget"]} == pytest.approx(expected["forget"], abs=1e-9)


@needs_logs
def test_forget_quality_of_the_published_logs(golden: dict[str, Any], published: dict[str, Records]) -> None:
    expected = golden["forget_quality"]["phi_full vs phi_retain90"]
    found = tofu.forget_quality(published["phi_full"], published["phi_retain90"])
    assert found.log_p == pytest.approx(expected["ln_p"], abs=1e-9)
    assert found.p == pytest.approx(expected["p"], rel=1e-9)
    assert (found.statistic, found.n) == (pytest.approx(expected["D"]), expected["n_a"])


@needs_logs
def test_logs_of_other_questions_are_refused_with_the_count_of_matching_rows(
    golden: dict[str, Any], published: dict[str, Records]
) -> None:
    with pytest.raises(ValueError, match=r"has 300 rows, the retained model 200, and 100 questions match"):
        tofu.forget_quality(published["phi_full"], published["phi_retain95"])
    expected = golden["forget_quality_aligned_rows_only"]["phi_full rows 200-299 vs phi_retain95 rows 0-99"]
    found = tofu.forget_quality(published["phi_full"], published["phi_retain95"], matching_rows=True)
    assert (found.log_p, found.n) == (pytest.approx(expected["ln_p"], abs=1e-9), 100)


# ---- hand-worked rows ------------------------------------------------------------------------------------------------


def test_probability_by_hand() -> None:
    rows = [row(0, answer_loss=0.0), row(1, answer_loss=math.log(4))]
    assert tofu.probability(rows) == pytest.approx((1 + 0.25) / 2)
    choices = [row(0, answer_loss=math.log(2), perturbed_losses=(math.log(4), math.log(8)))]
    assert tofu.probability(choices, of_choices=True) == pytest.approx(0.5 / (0.5 + 0.25 + 0.125))


def test_truth_ratio_by_hand() -> None:
    rows = [row(0, paraphrase_loss=2.0, perturbed_losses=(3.0, 5.0)), row(1, paraphrase_loss=5.0)]
    # R = exp(2 - 4) and exp(5 - 4): only the first row prefers the truth.
    assert tofu.log_truth_ratios(rows) == pytest.approx([-2.0, 1.0])
    assert tofu.truth_ratio(rows) == pytest.approx((1 - math.exp(-2)) / 2)
    assert tofu.truth_ratio_min(rows) == pytest.approx((math.exp(-2) + math.exp(-1)) / 2)
    # p / (p + p_wrong): exp(-2) against exp(-4), exp(-5) against exp(-4).
    believed = [math.exp(-2) / (math.exp(-2) + math.exp(-4)), math.exp(-5) / (math.exp(-5) + math.exp(-4))]
    assert tofu.truth_ratio_prob_mean(rows) == pytest.approx(sum(believed) / 2)
    # Losses beyond what a float holds as a probability.
    lost = [row(0, paraphrase_loss=2000.0), row(1, paraphrase_loss=1.0, perturbed_losses=(3000.0, 3000.0))]
    assert tofu.truth_ratio_prob_mean(lost) == 0.5


@pytest.mark.parametrize("kind", tofu.TRUTH_RATIOS)
def test_a_model_that_prefers_nothing_has_a_truth_ratio_of_1_in_every_row(kind: str) -> None:
    """Exactly, or ranks would be by rounding: two such models are then as far apart as can be, and not the same."""
    losses = [0.1, 3.0145678, 4.6051702, 10.373491, 7.3]
    rows = [row(i, paraphrase_loss=loss, perturbed_losses=(loss,) * 5) for i, loss in enumerate(losses)]
    assert tofu.log_truth_ratios(rows, kind).tolist() == [0.0] * 5
    others = [row(i, paraphrase_loss=2.7, perturbed_losses=(2.7,) * 5) for i in range(5)]
    quality = tofu.forget_quality({"forget": rows}, {"forget": others}, kind)
    assert (quality.p, quality.statistic) == (1.0, 0.0)


def test_the_arithmetic_truth_ratio_averages_probabilities() -> None:
    mean = (math.exp(-3) + math.exp(-5)) / 2
    assert tofu.log_truth_ratios([row()], "arithmetic") == pytest.approx([math.log(mean / math.exp(-2))])
    with pytest.raises(ValueError, match='truth_ratio: expected one of geometric, arithmetic, got "harmonic"'):
        tofu.log_truth_ratios([row()], "harmonic")


def test_model_utility_is_the_harmonic_mean_of_nine_and_forget_does_not_enter() -> None:
    records = all_sets()
    expected = hmean(
        [math.exp(-1), 0.5, 1 - math.exp(-2)] + 2 * [1 / (1 + math.exp(-2) + math.exp(-4)), 0.5, 1 - math.exp(-2)]
    )
    assert tofu.model_utility(records) == pytest.approx(expected)
    del records["forget"]
    assert tofu.model_utility(records) == pytest.approx(expected)


def test_one_zero_component_makes_model_utility_zero() -> None:
    records = all_sets()
    records["world_facts"] = [row(rougeL_recall=0.0)]
    assert tofu.model_utility(records) == 0.0
    records["retain"] = [row(paraphrase_loss=9.0)]  # two of them: no infinity of either sign
    assert str(tofu.components(records)["retain_truth_ratio"]) == "0.0"
    assert tofu.model_utility(records) == 0.0


def test_the_interval_of_model_utility_is_that_of_sets_drawn_anew() -> None:
    """Against the measure itself, of records drawn one by one."""
    draw = random.Random(0)

    def some(index: int) -> Record:
        wrong = (draw.uniform(1, 4), draw.uniform(1, 4))
        return row(index, answer_loss=draw.uniform(0, 2), perturbed_losses=wrong, rougeL_recall=draw.uniform(0.2, 1))

    records = {name: [some(i) for i in range(30)] for name in all_sets()}
    found = tofu.utility_interval(records)
    assert found == tofu.utility_interval(records)
    anew = [
        tofu.model_utility({name: draw.choices(rows, k=len(rows)) for name, rows in records.items()})
        for _ in range(1000)
    ]
    low, high = np.quantile(anew, [0.025, 0.975])
    width = high - low
    assert found == (pytest.approx(low, abs=width / 10), pytest.approx(high, abs=width / 10))
    assert found[0] < tofu.model_utility(records) < found[1]


def test_an_interval_of_rows_that_are_zero() -> None:
    assert tofu.utility_interval(all_sets(rougeL_recall=0.0)) == (0.0, 0.0)


def test_a_collapsed_model_gives_numbers_without_overflow() -> None:
    records = all_sets(answer_loss=900.0, paraphrase_loss=1e4, perturbed_losses=(900.0, 1.5e3))
    assert tofu.components(records)["retain_prob"] == 0.0
    assert tofu.components(records)["ra_prob"] == pytest.approx(0.5)  # the original formula: 0 / 0
    assert tofu.truth_ratio(records["retain"]) == 0.0
    assert tofu.forget_scores(records)["truth_ratio_min"] == 0.0


# ---- Forget Quality --------------------------------------------------------------------------------------------------


def forget_set(log_ratios: Any, questions: Any = None) -> Records:
    return {
        "forget": [
            row(
                i,
                paraphrase_loss=float(ratio),
                perturbed_losses=(0.0, 0.0),
                question=questions[i] if questions else f"q{i}",
            )
            for i, ratio in enumerate(log_ratios)
        ]
    }


@pytest.mark.parametrize("n", [1, 2, 7, 40, 200, 300])
def test_forget_quality_is_scipys_exact_test_on_ratios_or_their_inverses(n: int) -> None:
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.3, 1.0, 5.0):
        a, b = rng.normal(size=n), rng.normal(size=n) + shift
        found = tofu.forget_quality(forget_set(a), forget_set(b))
        for map_ in (np.exp, lambda x: np.exp(-x)):
            expected = ks_2samp(map_(a), map_(b))
            assert found.p == pytest.approx(expected.pvalue, rel=1e-8)
            assert found.statistic == pytest.approx(expected.statistic)
        assert found.log_p == pytest.approx(math.log(found.p), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 40, 200, 300])
def test_forget_quality_of_models_that_are_almost_one(n: int) -> None:
    """In whole numbers. scipy gives up there, with a warning, and gives 0.99996 for 1 row of 7."""
    for k in range(1, min(n, 6) + 1):
        found = tofu.forget_quality(forget_set(np.arange(n, dtype=float)), forget_set(np.arange(n) + k - 0.5))
        terms = ((-1) ** (i - 1) * math.comb(2 * n, n - i * k) for i in range(1, n // k + 1))
        assert found.statistic == k / n
        assert found.p == pytest.approx(float(Fraction(2 * sum(terms), math.comb(2 * n, n))), rel=1e-11)
        assert 0.0 <= found.p <= 1.0


def test_log_p_lies_on_the_papers_grid() -> None:
    for k, n, log_p in ((76, 200, -28.8476), (80, 200, -32.1330), (110, 300, -40.5243), (120, 300, -48.5895)):
        a, b = np.arange(n, dtype=float), np.arange(n) + k - 0.5
        assert tofu.forget_quality(forget_set(a), forget_set(b)).log_p == pytest.approx(log_p, abs=1e-4)


def test_log_p_is_finite_where_p_is_not() -> None:
    found = tofu.forget_quality(forget_set(np.zeros(600)), forget_set(np.ones(600)))
    expected = math.log(2) - (math.lgamma(1201) - 2 * math.lgamma(601))
    assert (found.p, found.statistic, found.log_p) == (0.0, 1.0, pytest.approx(expected))


def test_equal_models_have_forget_quality_one() -> None:
    found = tofu.forget_quality(forget_set([1.0, 2.0]), forget_set([1.0, 2.0]))
    assert (found.p, found.log_p, found.statistic, found.n) == (1.0, 0.0, 0.0, 2)


def test_the_min_form_would_give_another_answer() -> None:
    a, b = np.array([-2.0, -1.0, -0.5]), np.array([2.0, 1.0, 0.5])
    assert tofu.forget_quality(forget_set(a), forget_set(b)).statistic == 1.0
    assert ks_2samp(np.exp(-abs(a)), np.exp(-abs(b))).statistic == 0.0


def test_a_question_that_comes_twice_counts_twice() -> None:
    same = forget_set([1.0, 2.0, 3.0], ["what?", "what?", "who?"])
    other = forget_set([1.0, 2.0, 3.0], ["what?", "who?", "who?"])
    assert tofu.forget_quality(same, same).n == 3
    with pytest.raises(ValueError, match="2 questions match"):
        tofu.forget_quality(same, other)
    assert tofu.forget_quality(same, other, matching_rows=True).n == 2


def test_order_does_not_matter_and_white_space_neither() -> None:
    a, b = forget_set([1.0, 2.0], ["a  b", "c"]), forget_set([2.0, 1.0], ["c", "a b"])
    assert tofu.forget_quality(a, b).p == 1.0


def test_without_questions_rows_are_compared_by_number() -> None:
    bare = {"forget": [dataclasses.replace(record, question=None) for record in forget_set([1.0, 2.0])["forget"]]}
    assert tofu.forget_quality(bare, forget_set([1.0, 2.0])).n == 2
    with pytest.raises(ValueError, match="2 row numbers"):
        tofu.forget_quality(bare, forget_set([1.0, 2.0, 3.0]))


def test_nothing_in_common_is_refused_even_for_matching_rows() -> None:
    with pytest.raises(ValueError, match="0 questions match"):
        tofu.forget_quality(forget_set([1.0], ["a"]), forget_set([1.0], ["b"]), matching_rows=True)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_missing_sets_and_fields_are_named() -> None:
    with pytest.raises(ValueError, match="Model Utility needs the real_authors set; the records hold forget, retain"):
        tofu.model_utility({"forget": [row()], "retain": [row()]})
    with pytest.raises(ValueError, match="retained model: Forget Quality needs the forget set"):
        tofu.forget_quality({"forget": [row()]}, {"retain": [row()]})
    with pytest.raises(ValueError, match="row 4 has no rougeL_recall"):
        tofu.rouge([row(), row(4, rougeL_recall=None)])
    with pytest.raises(ValueError, match="no perturbed_losses"):
        tofu.truth_ratio([row(perturbed_losses=())])
    with pytest.raises(ValueError, match="row 1 has 1 wrong answers, row 0 has 2"):
        tofu.truth_ratio([row(), row(1, perturbed_losses=(1.0,))])
    with pytest.raises(ValueError, match="no rows"):
        tofu.probability([])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_losses_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"retain: row 2: answer_loss is NaN or Inf \(1 rows"):
        tofu.probability([row(), row(2, answer_loss=value)], where="retain")
    with pytest.raises(ValueError, match="row 0: perturbed_losses is NaN or Inf"):
        tofu.truth_ratio([row(perturbed_losses=(1.0, value))])


def test_records_survive_json() -> None:
    records = [row(1), row(0)]
    rows = json.loads(json.dumps([to_json(record) for record in records]))
    assert from_json(rows, "here") == [row(0), row(1)]
    with pytest.raises(ValueError, match="here: row 0 comes twice"):
        from_json([*rows, rows[1]], "here")
    with pytest.raises(ValueError, match="got loss as well"):
        from_json([{"index": 0, "loss": 1.0}], "here")
    with pytest.raises(ValueError, match="got no index"):
        from_json([{"question": "?"}], "here")
