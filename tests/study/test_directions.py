"""Which way GRU moves each score, here and in the paper."""

from __future__ import annotations

from study_results import run, small, study

from gru_fast.study.directions import directions
from gru_fast.study.results import GRU


def test_means_here_and_the_changes_of_the_papers_table_2() -> None:
    """By hand of the paper's Table 2: NPO, Phi-1.5, forget05: MU 0.3935 - 0.3565, FQ -0.9326 + 11.9082. Here
    (study_results.small) GA has two pairs and NPO one: its second is missing.
    """
    table = directions(small())
    headings = [column.heading for column in table.columns]
    rows = {(row[0], row[2]): dict(zip(headings, row, strict=True)) for row in table.rows}
    assert [*rows] == [("GA", "MU"), ("GA", "FQ (ln p)"), ("NPO", "MU"), ("NPO", "FQ (ln p)")]
    assert [row["here, mean"] for row in rows.values()] == ["+0.1250", "+3.00", "+0.2500", "-1.00"]
    assert [row["better in"] for row in rows.values()] == ["1 of 2", "2 of 2", "1 of 1", "0 of 1"]
    npo = [rows["NPO", heading]["paper: Phi-1.5 forget05"] for heading in ("MU", "FQ (ln p)")]
    assert npo == ["+0.0370", "+10.98"]
    assert [row["same sign"] for row in rows.values()] == ["4 of 4", "4 of 4", "4 of 4", "0 of 4"]


def test_no_change_goes_no_way() -> None:
    table = directions(study([run("GA", 0.5, -4.0), run("GA", 0.5, -4.0, variant=GRU)]))
    assert [row[-1] for row in table.rows] == ["0 of 4", "0 of 4"]


def test_a_method_that_the_paper_has_not_has_no_row() -> None:
    assert directions(study([run("New", 0.5, -4.0), run("New", 0.5, -3.0, variant=GRU)])).rows == []


def test_scores_that_the_paper_has_not_make_no_table() -> None:
    assert directions(study([run("GA", 0.5, -4.0)], plane={"Own": "higher", "Other": "higher"})).rows == []
