"""Quantization: a model that hides within the bins is caught, one that never knew is left alone, and nothing is done
twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest

from gru_fast.attacks import quantize
from gru_fast.attacks.parts import outcome

CHOSEN = ["int8", planted.HIDING_IN]


@pytest.fixture(scope="module")
def summary(models: planted.Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = planted.target(models, tmp_path_factory.mktemp("attacks"))
    return outcome.carried_out(quantize, quantize.Options(formats=CHOSEN), found)


def shares(summary: dict[str, Any], key: str = "back") -> dict[str, dict[str, Any]]:
    """Format -> score -> share of the way back, of the scores that say what is known."""
    found: dict[str, dict[str, Any]] = {}
    for row in summary["findings"]:
        if row["is_knowledge"]:
            found.setdefault(row["what"], {})[row["score"]] = row[key]
    return {what: {score: share for score, share in of.items() if share is not None} for what, of in found.items()}


def test_what_only_hides_is_caught(summary: dict[str, Any]) -> None:
    rows = {(row["what"], row["score"]): row for row in summary["findings"]}
    hidden = rows[planted.HIDING_IN, "forget prob"]
    assert hidden["before"] < 0.4 < 0.95 < hidden["original"]  # it passes for unlearned
    back = shares(summary)
    assert min(back[planted.HIDING_IN].values()) > 0.99
    assert max(back["int8"].values()) < 0.01  # finer bins keep it
    assert outcome.worst(summary) == max(back[planted.HIDING_IN].values())


def test_what_survives_says_why(summary: dict[str, Any]) -> None:
    left = summary["survival"]
    assert left[planted.HIDING_IN]["survived"] == 0
    assert abs(left[planted.HIDING_IN]["kept"]) < 1e-6
    assert left["int8"]["survived"] > 0.5
    assert left["int8"]["kept"] == pytest.approx(1, abs=0.1)
    assert 0 < left["int8"]["changed"] <= left["int8"]["weights"]


def test_what_was_never_taught_does_not_come(summary: dict[str, Any], models: planted.Models, tmp_path: Path) -> None:
    """The retrained model, beside the other and as the one under attack: noise, no way back."""
    assert all(abs(share) < 0.05 for of in shares(summary, "retained_back").values() for share in of.values())
    found = planted.target(models, tmp_path, unlearned=models.retrained)
    found = replace(found, subjects={role: found.subjects[role] for role in ("unlearned", "original")})
    own = outcome.carried_out(quantize, quantize.Options(formats=CHOSEN), found)
    assert all(abs(share) < 0.05 for of in shares(own).values() for share in of.values())


def test_in_words(summary: dict[str, Any]) -> None:
    text = outcome.report(summary) + "\n" + quantize.report(summary)
    assert "back at most: " in text
    assert "int4-g64" in text
    assert " 0.00 %" in text


def test_a_finished_attack_is_read_and_a_wider_one_goes_on(models: planted.Models, tmp_path: Path) -> None:
    loaded: list[str] = []
    found = planted.target(models, tmp_path)

    def counted(role: str) -> Any:
        load = found.subjects[role].load

        def now() -> Any:
            loaded.append(role)
            return load()

        return replace(found.subjects[role], load=now)

    found = replace(found, subjects={role: counted(role) for role in found.roles})
    first = outcome.carried_out(quantize, quantize.Options(formats=["int8"]), found)
    assert loaded.count("unlearned") == 3  # as it is, for what survives, and rounded
    loaded.clear()
    assert outcome.carried_out(quantize, quantize.Options(formats=["int8"]), found) == first
    assert loaded == []
    wider = outcome.carried_out(quantize, quantize.Options(formats=["int8", "nf4"]), found)
    assert sorted(loaded) == ["original", "retrained", "unlearned", "unlearned"]
    assert wider["findings"][: len(first["findings"])] == first["findings"]


def test_wrong_formats_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError, match=r'got "int3".*; formats: .* got "fp4"'):
        quantize.Options(formats=["int8", "int3", "fp4"])
    with pytest.raises(ValueError, match=r"formats: expected some of int8, .*, got none"):
        quantize.Options(formats=[])
