"""Runs along their way, by hand: where equally far moved, where equally much is kept."""

from __future__ import annotations

import pytest
from study_results import reference, run, study

from gru_fast.study.paths import Compared, Place, compared, path, paths
from gru_fast.study.results import FURTHER, GRU, ORIGINAL, Point, StudyResults


def point(epoch: int, moved: float | None, mu: float, fq: float) -> Point:
    return Point(epoch, epoch, {"MU": mu, "FQ (ln p)": fq}, moved)


PLAIN_WAY = [point(1, 0.01, 0.6, -30.0), point(2, 0.04, 0.2, -10.0)]
GRU_WAY = [point(1, 0.01, 0.75, -30.0), point(2, 0.02, 0.7, -20.0)]


def two(**more: list[Point]) -> StudyResults:
    """The original has MU 0.8 and FQ -40; plain and GRU come from it on two ways of two evaluations."""
    runs = [reference(ORIGINAL, 0.8, -40.0)]
    for variant, way in {"plain": PLAIN_WAY, GRU: GRU_WAY, **more}.items():
        uses = ["comparison"] if variant in {"plain", GRU} else [FURTHER]
        runs.append(
            run("GA", way[-1].scores["MU"], way[-1].scores["FQ (ln p)"], variant=variant, points=way, uses=uses)
        )
    return study(runs)


def test_a_path_begins_at_the_original() -> None:
    results = two()
    assert path(results, next(results.find(variant=GRU))) == [
        Place(0.0, 0.8, -40.0), Place(0.01, 0.75, -30.0), Place(0.02, 0.7, -20.0),
    ]  # fmt: skip


def test_changes_at_the_end_after_an_equal_way_and_at_equal_retention() -> None:
    """GRU ends at 0.02, half of plain's 0.04. Plain had moved 0.02 a third of the way from its first evaluation to its
    second: MU 0.6 - 0.4 / 3, FQ -30 + 20 / 3. Plain had kept 0.7 half of the way to its first: FQ -35.
    """
    results = two()
    plain, gru = (path(results, each) for each in results.find(kind="unlearned"))
    found = compared(plain, gru)
    assert found.moved == pytest.approx(0.5)
    assert found.end == pytest.approx((0.5, -10.0))
    assert found.at_distance == pytest.approx((0.7 - (0.6 - 0.4 / 3), -20 - (-30 + 20 / 3)))
    assert found.at_retention == pytest.approx(-20.0 - -35.0)


def test_the_other_way_round_changes_the_signs() -> None:
    results = two()
    plain, gru = (path(results, each) for each in results.find(kind="unlearned"))
    there, back = compared(plain, gru), compared(gru, plain)
    assert back.moved == pytest.approx(2.0)
    assert back.end == pytest.approx(tuple(-each for each in there.end))
    assert back.at_distance == pytest.approx(tuple(-each for each in there.at_distance or ()))
    assert back.at_retention == pytest.approx(-(there.at_retention or 0.0))


def test_nothing_given_up_is_no_equal_retention() -> None:
    start = Place(0.0, 0.8, -40.0)
    assert compared([start, Place(0.01, 0.81, -38.0)], [start, Place(0.02, 0.7, -30.0)]) == Compared(
        pytest.approx(2.0), pytest.approx((-0.11, 8.0)), pytest.approx((-0.06, 3.0)), None
    )


def test_distances_that_are_not_known() -> None:
    start = Place(0.0, 0.8, -40.0)
    found = compared([start, Place(None, 0.6, -30.0)], [start, Place(None, 0.7, -30.0)])
    assert (found.moved, found.at_distance) == (None, None)
    assert found.at_retention == pytest.approx(5.0)


def test_the_table_has_a_row_a_way_to_rectify() -> None:
    table = paths(two(update=[point(1, 0.02, 0.7, -25.0), point(2, 0.04, 0.6, -12.0)]), "forget05")
    headings = [column.heading for column in table.columns]
    rows = [dict(zip(headings, map(str, row), strict=True)) for row in table.rows]
    assert [(row["Variant"], row["moved"], row["FQ (ln p), end"], row["MU, end"], row["n"]) for row in rows] == [
        ("w/ GRU", "0.5", "-10.00", "+0.5000", "1"),
        ("w/ update", "1.0", "-2.00", "+0.4000", "1"),
    ]
    assert rows[0]["FQ (ln p), equal MU"] == "+15.00"


def test_without_evaluations_along_the_way_there_is_no_row() -> None:
    assert (
        paths(
            study([reference(ORIGINAL, 0.8, -40.0), run("GA", 0.5, -4.0), run("GA", 0.6, -3.0, variant=GRU)]),
            "forget05",
        ).rows
        == []
    )
