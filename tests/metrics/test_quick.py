"""Intervals of a quick look: against another bootstrap, and by hand where they are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gru_fast.metrics import quick


def test_every_third_row() -> None:
    assert [quick.step(True), quick.step(False)] == [3, 1]
    assert quick.indices(7, True) == [0, 3, 6]
    assert quick.indices(3, False) == [0, 1, 2]
    assert quick.indices(0, True) == []


def test_an_interval_is_that_of_another_bootstrap() -> None:
    """Of a mean and of a difference of two sets', drawn row by row with another generator."""
    draw = random.Random(0)
    one, other = ([draw.gauss(mu, 1) for _ in range(count)] for mu, count in ((2.0, 40), (0.5, 25)))
    sets = {"one": np.array(one)[:, None], "other": np.array(other)[:, None]}

    def scores(drawn: dict[str, quick.Floats]) -> dict[str, float | None]:
        means = {name: float(rows.mean()) for name, rows in drawn.items()}
        return {"mean": means["one"], "apart": means["one"] - means["other"], "unknown": None}

    found = quick.intervals(sets, scores)
    assert found == quick.intervals(sets, scores)
    assert list(found) == ["mean", "apart"]
    anew = []
    for _ in range(4000):
        means = [sum(draw.choices(rows, k=len(rows))) / len(rows) for rows in (one, other)]
        anew.append((means[0], means[0] - means[1]))
    for (low, high), values in zip(found.values(), np.array(anew).T, strict=True):
        expected = np.quantile(values, [0.025, 0.975])
        width = expected[1] - expected[0]
        assert [low, high] == pytest.approx(expected.tolist(), abs=width / 10)


def test_one_row_drawn_anew_stays_as_it_is() -> None:
    assert quick.intervals({"a": np.array([[0.25]])}, lambda drawn: {"x": float(drawn["a"].sum())}) == {
        "x": [0.25, 0.25]
    }


def test_means_of_columns_that_some_rows_have() -> None:
    rows = quick.table([{"a": 1.0, "b": 3.0}, {"a": 2.0}, {}], ["a", "b", "c"])
    assert quick.means(rows) == [1.5, 3.0, None]


def test_what_is_said_of_it() -> None:
    assert quick.report({}) == []
    assert quick.report({"intervals": {"MU": [0.25, 0.5]}})[1].split() == ["MU", "0.2500", "to", "0.5000"]
    assert quick.setting(True) == {"quick": True}
    assert quick.setting(False) == {}
