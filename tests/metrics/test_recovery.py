"""The share of the way back: by hand, whichever way a score goes, and nothing where there is no way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_fast.metrics.recovery import share_back


@pytest.mark.parametrize(
    ("before", "after", "original", "expected"),
    [
        (0.2, 0.2, 0.8, 0.0),
        (0.2, 0.8, 0.8, 1.0),
        (0.2, 0.35, 0.8, 0.25),
        (0.2, 0.1, 0.8, -1 / 6),
        (0.2, 0.9, 0.8, 7 / 6),
        (5.0, 3.0, 1.0, 0.5),  # a loss: down is back
        (-20.0, -60.0, -100.0, 0.5),  # ln p
        (0.5, 0.9, 0.505, None),  # hardly any way
        (97.0, 99.0, 97.5, None),  # in percent: 1% of 97
        (None, 0.2, 0.8, None),
        (0.2, 0.2, None, None),
        (0.2, math.nan, 0.8, None),
        (0.2, 0.5, math.inf, None),
    ],
)
def test_by_hand(before: float | None, after: float | None, original: float | None, expected: float | None) -> None:
    assert share_back(before, after, original) == (None if expected is None else pytest.approx(expected))


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.1, 10), st.floats(0, 2))
def test_units_do_not_matter(before: float, original: float, scale: float, share: float) -> None:
    after = before + share * (original - before)
    found = share_back(before, after, original)
    if abs(original - before) > 0.02:
        assert found == pytest.approx(share, abs=1e-6)
    if found is not None and abs(original - before) * scale > 0.2:
        assert share_back(scale * before, scale * after, scale * original) == pytest.approx(found, abs=1e-6)
