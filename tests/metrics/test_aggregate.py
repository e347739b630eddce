"""The unified framework's aggregates, by hand: each part, what is missing, and a model that removed nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gru_fast.metrics.aggregate import HELP, NAMES, OVERALL, aggregates, likeness, with_needs
from gru_fast.metrics.records import Record, Records

MEMORIZATION, PRIVACY, UTILITY = NAMES


def records(paraphrase: float, wrong: tuple[float, ...]) -> Records:
    """One forget row with these probabilities a token."""
    losses = tuple(-math.log(p) for p in wrong)
    return {"forget": [Record(0, paraphrase_loss=-math.log(paraphrase), perturbed_losses=losses)]}


def numbers(
    strength: float = 0.2, exact: float = 0.5, auc: float = 0.7, retained: float | None = 0.5
) -> dict[str, Any]:
    attack = {"auc": auc, "retained_auc": retained, "privleak": None}
    return {
        "extraction_strength": {"forget": 0.2, "retain": 1.0},
        "exact_memorization": {"forget": exact, "retain": 1.0},
        "gibberish": {"forget": 0.8, "retain": 1.0},
        **dict.fromkeys(("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"), attack),
    }


def value(name: str, *args: Any, utility: float | None = 0.4) -> float | None:
    return aggregates([name], *args, utility)[name]["all"]


def test_by_hand() -> None:
    # TR: 0.6 / (0.6 + sqrt(0.4 * 0.1)) = 0.75; 1 minus ES, EM, ParaProb, TR: 0.8, 0.5, 0.4, 0.25
    rows = records(0.6, (0.4, 0.1))
    assert value(MEMORIZATION, numbers(), rows) == pytest.approx(4 / (1 / 0.8 + 1 / 0.5 + 1 / 0.4 + 1 / 0.25))
    assert value(PRIVACY, numbers(), rows) == pytest.approx(0.6)  # 1 - 0.2 / 0.5, four times
    assert value(UTILITY, numbers(), rows) == pytest.approx(2 / (1 / 0.4 + 1 / 0.8))
    found = aggregates([*HELP], numbers(), rows, 0.4)
    assert [*found] == [*HELP]
    parts = [found[name]["all"] for name in NAMES]
    assert found[OVERALL]["all"] == pytest.approx(3 / sum(1 / x for x in parts if x))


def test_four_different_attacks() -> None:
    given = numbers()
    aucs = {"mia_loss": 0.5, "mia_zlib": 0.6, "mia_min_k": 0.7, "mia_min_k_plus_plus": 0.9}
    for name, auc in aucs.items():
        given[name] = {"auc": auc, "retained_auc": 0.5}
    assert value(PRIVACY, given, records(0.5, (0.5,))) == pytest.approx(4 / (1 + 1 / 0.8 + 1 / 0.6 + 1 / 0.2))


def test_what_is_missing_is_null_and_so_is_what_needs_it() -> None:
    rows, without = records(0.6, (0.4,)), numbers(retained=None)
    assert value(PRIVACY, without, rows) is None
    assert value(OVERALL, without, rows) is None
    assert value(UTILITY, numbers(), rows, utility=None) is None
    assert value(MEMORIZATION, without, rows) is not None


def test_a_model_that_knows_all_has_none() -> None:
    assert value(MEMORIZATION, numbers(exact=1.0), records(0.6, (0.4,))) == 0
    assert value(OVERALL, numbers(auc=1.0), records(0.6, (0.4,))) == 0


def test_likeness_is_0_at_the_far_end_and_1_at_the_retrained_model() -> None:
    for retained in (0.1, 0.5, 0.8):
        assert likeness(retained, retained) == 1
        assert min(likeness(0.0, retained) or 0, likeness(1.0, retained) or 0) == 0
    assert likeness(0.3, None) is None


def test_what_each_is_made_of() -> None:
    assert with_needs([MEMORIZATION, "fluency"]) == ["extraction_strength", "exact_memorization", "fluency"]
    assert len(with_needs([OVERALL, PRIVACY])) == 7
