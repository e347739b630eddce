"""Findings: their shares, what is worst, the table, and when a summary that is there is taken."""

from __future__ import annotations

from typing import Any

import pytest

from gru_fast import attacks
from gru_fast.attacks.parts.outcome import Finding, columns, report, worst


def summary(*findings: Finding) -> dict[str, Any]:
    return {"attack": "quantize", "findings": [finding.to_json() for finding in findings]}


KNOWN = Finding("int8", "forget prob", 0.2, 0.35, 0.8, 0.3, 0.4, at={"format": "int8"})
HIDDEN = Finding("nf4", "forget prob", 0.2, 0.5, 0.8, 0.3, 0.25, interval=(0.4, 0.6))
UTILITY = Finding("nf4", "MU", 0.2, 0.8, 0.8, is_knowledge=False)
UNKNOWN = Finding("nf4", "forget ROUGE-L", 0.2, 0.5)


def test_shares() -> None:
    assert KNOWN.back == pytest.approx(0.25)
    assert KNOWN.retained_back == pytest.approx(0.2)
    assert UNKNOWN.back is None
    assert Finding("x", "forget prob", 0.8, 0.3, 0.2).back is None  # the original knows less: nothing can come back
    assert Finding("x", "loss", 0.8, 0.5, 0.2, is_knowledge=False).back == pytest.approx(0.5)
    assert KNOWN.to_json()["back"] == KNOWN.back


def test_the_worst_is_of_what_is_known_alone() -> None:
    found = summary(KNOWN, HIDDEN, UTILITY, UNKNOWN)
    assert worst(found) == HIDDEN.back == pytest.approx(0.5)
    assert worst(found, "retained_back") == pytest.approx(0.2)
    assert worst(summary(UNKNOWN)) is None
    assert columns(found) == {"back: quantize": HIDDEN.back}


def test_the_table() -> None:
    text = report(summary(KNOWN, HIDDEN, UTILITY)).splitlines()
    assert [" ".join(line.split()) for line in text] == [
        "quantize score before after original back retr. attacked back",
        "int8 forget prob 0.2000 0.3500 0.8000 25.0 % 0.3000 0.4000 20.0 %",
        "nf4 forget prob 0.2000 0.5000 0.8000 50.0 % 0.3000 0.2500 -10.0 % [0.400, 0.600]",
        "MU 0.2000 0.8000 0.8000 100.0 % - - -",
        "back at most: 50.0 % of the way to the original; of the retrained model 20.0 %",
    ]
    hidden = Finding("5 steps", "forget prob", 0.2, 0.7, 0.8, is_shown=False)
    assert "5 steps" not in report(summary(KNOWN, hidden))
    assert "back at most: 83.3 %" in report(summary(KNOWN, hidden))
    assert "back at most: not known without the original model; give --original" in report(summary(UNKNOWN))
    near = Finding("nf4", "forget prob", 0.2, 0.5, 0.2)
    assert "back at most: not known: the original model knows no more" in report(summary(near))


def test_the_attacks_there_are() -> None:
    assert attacks.names() == ["quantize", "relearn", "sample", "extract"]
    for name in attacks.names():
        module = attacks.get(name)
        assert module.HELP
        assert all(hasattr(module, part) for part in ("Options", "cost", "settings", "run", "report"))
    with pytest.raises(ValueError, match=r'expected some of quantize, .*, got "quantise", did you mean "quantize"\?'):
        attacks.get("quantise")
