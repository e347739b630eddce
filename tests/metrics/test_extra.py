"""The optional metrics: their registry, and numbers that belong to the right rows."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from interpreter import run_python

from gru_fast.metrics import scores
from gru_fast.metrics.extra import merge, summarize
from gru_fast.metrics.mia import auc, privleak
from gru_fast.metrics.scores import TextRecord


def records(*correct: str, base: float = -1.0) -> list[TextRecord]:
    return [
        TextRecord(i, log_probs=tuple(base - i for _ in text), correct=text, generation=text * 3)
        for i, text in enumerate(correct)
    ]


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_every_metric_says_what_it_is_and_reads_only_what_it_says() -> None:
    whole: dict[str, Any] = {
        "log_probs": (-1.0, -2.0),
        "correct": "10",
        "vocab_means": (-3.0, -3.0),
        "vocab_variances": (1.0, 1.0),
        "zlib_bytes": 9,
        "gradient_norm": 0.5,
        "reference_loss": 1.0,
        "generation": "a b c",
        "clean": 0.5,
    }
    assert set(whole) == set(scores.FIELDS)
    for name in scores.names():
        metric = scores.get(name)
        assert metric.name == name
        assert metric.help
        assert metric.score.__doc__
        only = TextRecord(0, **{field: whole[field] for field in metric.fields})
        assert metric.score(only) == metric.score(TextRecord(0, **whole))
        for field in metric.fields:
            with pytest.raises(ValueError, match=f"no {field}; it was not scored"):
                metric.score(dataclasses.replace(only, **{field: None}))


def test_unknown_metrics_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'metrics: expected some of exact_memorization, .*, got "MIA-LOSS", did you'):
        scores.get("MIA-LOSS")


def test_a_name_or_a_field_is_not_taken_twice_or_made_up() -> None:
    with pytest.raises(ValueError, match=r'metric "mia_loss": registered twice, by gru_fast\.metrics\.mia and'):
        scores.attack("mia_loss", "again", "log_probs")(lambda record: 0.0)
    with pytest.raises(ValueError, match=r'metric "new": expected fields among log_probs, .* got'):
        scores.measure("new", "of nothing", "tokens")(lambda record: 0.0)
    assert "new" not in scores.names()


def test_metrics_import_no_model_library(tmp_path: Path) -> None:
    code = "import sys; from gru_fast.metrics import scores; scores.names(); print('transformers' in sys.modules)"
    done = run_python(code, tmp_path)
    assert done.stdout == "False\n", done.stderr


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_a_measure_is_averaged_over_each_set() -> None:
    found = summarize(["exact_memorization"], {"forget": records("110", "000"), "retain": records("110")})
    assert found == {"exact_memorization": {"forget": 0.5, "retain": 1.0}}
    of_one = summarize(["exact_memorization"], {"a": records("010")}, measured=("a",))
    assert of_one == {"exact_memorization": {"a": 0.5}}


def test_an_attack_is_the_auc_and_relative_to_the_retrained_model() -> None:
    ours = {"forget": records("11", "11", base=-0.5), "holdout": records("11", "11", base=-1.0)}
    theirs = {"forget": records("11", "11", base=-1.0), "holdout": records("11", "11", base=-0.9)}
    alone = summarize(["mia_loss"], ours)["mia_loss"]
    assert alone == {"auc": 0.75, "retained_auc": None, "privleak": None, "rel_diff": None}
    both = summarize(["mia_loss"], ours, theirs)["mia_loss"]
    expected = auc([1.0, 2.0], [0.9, 1.9])
    relative = 100 * (0.75 - expected) / expected
    leak = privleak(0.75, expected)
    assert both == {"auc": 0.75, "retained_auc": expected, "privleak": leak, "rel_diff": pytest.approx(relative)}
    swapped = summarize(["mia_loss"], ours, attacked=("holdout", "forget"))["mia_loss"]
    assert swapped["auc"] == 0.25


def test_a_retrained_model_that_knows_the_sets_apart_gives_no_privleak() -> None:
    sets = {"forget": records("1", base=-0.5), "holdout": records("1", base=-1.0)}
    found = summarize(["mia_loss"], sets, sets)["mia_loss"]
    assert found == {"auc": 1.0, "retained_auc": 1.0, "privleak": None, "rel_diff": 0.0}
    other = summarize(["mia_loss"], sets, sets, attacked=("holdout", "forget"))["mia_loss"]
    assert other == {"auc": 0.0, "retained_auc": 0.0, "privleak": 0.0, "rel_diff": None}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="mia_loss needs the holdout set; the records hold forget"):
        summarize(["mia_loss"], {"forget": records("1"), "holdout": []})
    with pytest.raises(ValueError, match="retained model: mia_loss needs the forget set; the records hold none"):
        summarize(["mia_loss"], {"forget": records("1"), "holdout": records("1")}, {})
    with pytest.raises(ValueError, match="mia_gradnorm: forget: row 0: no gradient_norm; it was not scored"):
        summarize(["mia_gradnorm"], {"forget": records("1"), "holdout": records("1")})
    broken = [TextRecord(0, log_probs=(-1.0,)), TextRecord(7, log_probs=(-float("inf"),))]
    with pytest.raises(ValueError, match="mia_loss: forget: row 7: the score is inf"):
        summarize(["mia_loss"], {"forget": broken, "holdout": broken})


def test_a_row_without_a_score_is_refused_and_not_dropped() -> None:
    """In the unified framework values were filtered for None and then zipped with the ids of all rows, so that every
    row after a dropped one got its neighbour's score."""
    rows = records("110", "010", "000")
    rows[1] = dataclasses.replace(rows[1], correct=None)
    with pytest.raises(ValueError, match="exact_memorization: forget: row 1: no correct"):
        summarize(["exact_memorization"], {"forget": rows}, measured=("forget",))


def test_files_are_joined_by_row_and_never_by_place() -> None:
    tokens = [{"index": i, "log_probs": [-1.0 * i], "correct": "1"} for i in range(9)]
    norms = [{"index": i, "gradient_norm": 10.0 * i} for i in range(9)]
    for seed in range(3):
        random.Random(seed).shuffle(tokens)
        random.Random(seed + 10).shuffle(norms)
        merged = merge({"tokens": tokens, "gradients": norms}, "forget")
        assert [(row.index, row.log_probs, row.gradient_norm) for row in merged] == [
            (i, (-1.0 * i,), 10.0 * i) for i in range(9)
        ]


def test_files_of_different_rows_are_refused() -> None:
    tokens = [{"index": i, "correct": "1"} for i in range(3)]
    norms = [{"index": i, "gradient_norm": 1.0} for i in (0, 2)]
    with pytest.raises(ValueError, match=r"forget: expected tokens and gradients to hold the same rows, got 3 and 2"):
        merge({"tokens": tokens, "gradients": norms}, "forget")
    with pytest.raises(ValueError, match="to hold the same rows, got 2 and 3"):
        merge({"gradients": norms, "tokens": tokens}, "forget")
    with pytest.raises(ValueError, match="to hold the same rows, got 2 and 3"):
        merge({"gradients": [norms[0], norms[1], norms[1]]}, "forget")


def test_a_metric_keeps_nothing_between_calls() -> None:
    """The unified framework's metrics are objects shared by all who use them, with what the last one set."""
    one, other = {"forget": records("110", "000")}, {"forget": records("010")}
    first = summarize(scores.names()[:2], one, measured=("forget",))
    summarize(scores.names()[:2], other, measured=("forget",))
    assert summarize(scores.names()[:2], one, measured=("forget",)) == first
    for name in scores.names():
        with pytest.raises(dataclasses.FrozenInstanceError):
            scores.get(name).name = "other"  # type: ignore[misc]
    # What a caller gets is his own.
    first["exact_memorization"]["forget"] = -1.0
    scores.names().clear()
    assert summarize(["exact_memorization"], one, measured=("forget",)) == {"exact_memorization": {"forget": 0.5}}
