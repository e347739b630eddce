"""What a sweep can be asked, and everything that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gru_fast.sweep.options import GAMMAS, TAUS, SweepOptions


def test_defaults_are_the_papers_grids() -> None:
    options = SweepOptions()
    assert options.gammas == [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]
    assert options.taus == [0.001, 0.005, 0.01, 0.1, 1, 10, 100]
    assert (len(GAMMAS), len(TAUS)) == (12, 7)


def test_texts_become_sorted_numbers() -> None:
    options = SweepOptions(gammas=["0.8", 0, "1e-1"], taus=["none", "10", "0.1"])
    assert options.gammas == [0.0, 0.1, 0.8]
    assert options.taus == [0.1, 10.0, None]  # no clipping is the largest bound
    assert SweepOptions(taus=["inf", 1]).taus == [1.0, None]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gammas": []}, "gammas: expected at least one value, got none"),
        ({"taus": []}, "taus: expected at least one value, got none"),
        ({"gammas": [0.5, "1.5"]}, r"gammas: gamma: expected a number in \[0, 1\].*, got 1\.5"),
        ({"gammas": ["-0.1"]}, r"gammas: gamma: expected a number in \[0, 1\]"),
        ({"gammas": ["none"]}, r"gammas: expected a number in \[0, 1\], got 'none'"),
        ({"gammas": ["a"]}, "gammas: could not convert string to float: 'a'"),
        ({"gammas": [0.5, "0.50"]}, "gammas: 0.5 is there twice"),
        ({"taus": ["0"]}, "taus: tau: expected a number above 0"),
        ({"taus": ["nan"]}, "taus: tau: expected a number above 0"),
        ({"objectives": []}, "objectives: expected at least one method, got none"),
        ({"objectives": ["ga", "npoo"]}, "objectives: expected some of .*, got 'npoo'; did you mean \"npo\"?"),
        ({"objectives": ["ga", "ga"]}, "objectives: ga is there twice"),
        ({"trials": 0}, "trials: expected a whole number of at least 1, got 0"),
        ({"share": 1.1}, r"share: expected a number in \[0, 1\], got 1\.1"),
        ({"sampler": "tpe", "taus": [1, "none"]}, "taus: expected numbers with --sampler tpe"),
        ({"share": -1, "trials": 0}, "trials: .*; share: "),
    ],
)
def test_wrong_uses(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SweepOptions(**settings)
