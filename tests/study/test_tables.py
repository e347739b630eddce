"""Tables: what stands in which cell, the paper's values, and the three forms."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from study_results import large, run, small, study

from gru_fast.study import tables
from gru_fast.study.render import Column, Score, Span, Table, comma_separated, latex, markdown, sort_value
from gru_fast.study.results import ABLATION, CLIPPED, FURTHER, GRU, PLAIN, RETAIN, SENSITIVITY, Calibrated, StudyResults
from gru_fast.study.tables import ablation, calibration, comparison, further, over_gamma, over_retain, over_tau, vectors

_NOTE = (
    "Mean $\\pm$ standard deviation over seeds; n: runs with scores, of those in the recipe. "
    "No value of the paper is comparable: it has none of this model."
)


def named(results: StudyResults, name: str) -> Table:
    return next(table for table in tables.tables(results) if table.name == name)


def column(table: Table, heading: str) -> list[str]:
    place = [each.heading for each in table.columns].index(heading)
    return ["-" if row[place] is None else str(row[place]) for row in table.rows]


def test_the_comparison_in_three_forms() -> None:
    """GA plain: FQ (-6 - 7) / 2, std 1 / sqrt 2; NPO w/ GRU: one of its two runs has failed."""
    table = comparison(small(), "forget05")
    assert markdown(table).splitlines() == [
        "| Method | Variant | FQ (ln p) ↑ | MU ↑ | n |",
        "| --- | --- | ---: | ---: | ---: |",
        "| Original |  | -20.00 | 0.8750 | 1 |",
        "| Retrained |  | 0.00 | 0.7500 | 1 |",
        "| GA | plain | -6.50 ± 0.71 | 0.3750 ± 0.1768 | 2 |",
        "| GA | w/ GRU | **-3.50 ± 0.71** | **0.5000 ± 0.0000** | 2 |",
        "| NPO | plain | **-1.25 ± 0.35** | 0.5625 ± 0.0884 | 2 |",
        "| NPO | w/ GRU | -2.00 | **0.7500** | 1 of 2 |",
    ]
    assert latex(table).splitlines() == [
        r"\begin{table}[t]",
        r"\centering",
        (
            r"\caption{TOFU forget05: every method plain and with GRU. In the shape of the paper's Tables 1 and 2. "
            rf"Bold: the better mean of plain and w/ GRU. {_NOTE}}}\label{{tab:comparison-forget05}}"
        ),
        r"\begin{tabular}{llrrr}",
        r"\toprule",
        r"Method & Variant & FQ (ln p) $\uparrow$ & MU $\uparrow$ & n \\",
        r"\midrule",
        r"Original &  & -20.00 & 0.8750 & 1 \\",
        r"Retrained &  & 0.00 & 0.7500 & 1 \\",
        r"GA & plain & -6.50 $\pm$ 0.71 & 0.3750 $\pm$ 0.1768 & 2 \\",
        r"GA & w/ GRU & \textbf{-3.50 $\pm$ 0.71} & \textbf{0.5000 $\pm$ 0.0000} & 2 \\",
        r"NPO & plain & \textbf{-1.25 $\pm$ 0.35} & 0.5625 $\pm$ 0.0884 & 2 \\",
        r"NPO & w/ GRU & -2.00 & \textbf{0.7500} & 1 of 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    rows = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert rows[3]["MU ↑ mean"] == "0.5"
    assert rows[2]["FQ (ln p) ↑ std"] == "0.7071067811865476"
    assert (rows[5]["MU ↑ n"], rows[5]["MU ↑ std"], rows[5]["n"]) == ("1", "", "1 of 2")


def test_the_lower_is_bold_where_lower_is_better() -> None:
    scores = {PLAIN: {"WMDP Cyber": 0.4, "MMLU": 0.5}, GRU: {"WMDP Cyber": 0.25, "MMLU": 0.25}}
    runs = [replace(run("GA", variant=variant, split="cyber"), scores=each) for variant, each in scores.items()]
    results = study(runs, benchmark="wmdp", plane={"MMLU": "kept", "WMDP Cyber": "left"})
    assert [line.split(" | ")[2:5] for line in markdown(comparison(results, "cyber")).splitlines()[2:]] == [
        ["-", "0.4000", "**0.5000**"],
        ["-", "**0.2500**", "0.2500"],
    ]


def test_sensitivity_over_tau_and_over_gamma() -> None:
    """gamma 0.8 has three tau, tau 1 has two gamma; gamma 0.5 has one tau and is in no row of the first."""
    settings = [(0.8, 0.1, -4.0), (0.8, 1.0, -3.0), (0.8, None, -2.0), (0.5, 1.0, -1.0)]
    runs = [run("GA", 0.5, fq, variant=GRU, gamma=gamma, tau=tau, uses=[SENSITIVITY]) for gamma, tau, fq in settings]
    results = study(runs, backbone="llama2-7b-chat-hf")
    assert markdown(over_tau(results, "forget05")).splitlines() == [
        "| Method | γ | Score | τ 0.1 | τ 1 | τ none | n |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
        "| GA | 0.8 | FQ (ln p) | -4.00 | -3.00 | -2.00 | 3 |",
        "| GA | 0.8 | FQ (ln p), paper | -7.7503 | -8.6008 | -3.5161 | - |",
        "| GA | 0.8 | MU | 0.5000 | 0.5000 | 0.5000 | 3 |",
        "| GA | 0.8 | MU, paper | 0.5761 | 0.5810 | 0.5190 | - |",
    ]
    assert markdown(over_gamma(study(runs), "forget05")).splitlines()[2:] == [
        "| GA | 1 | FQ (ln p) | -1.00 | -3.00 | 2 |",
        "| GA | 1 | MU | 0.5000 | 0.5000 | 2 |",
    ]


def test_ablation() -> None:
    runs = [
        run("GA", mu, -5.0, variant=variant, uses=[ABLATION])
        for variant, mu in ((PLAIN, 0.25), (CLIPPED, 0.75), (GRU, 0.5))
    ]
    table = ablation(study(runs), "forget05")
    assert column(table, "Variant") == ["plain", "clipping only", "w/ GRU"]
    assert [line.split(" | ")[3] for line in markdown(table).splitlines()[2:]] == ["0.2500", "**0.7500**", "0.5000"]
    assert "**-5.00**" not in markdown(table)  # all the same: none is better


def test_over_retain() -> None:
    runs = [
        run("GA", mu, -5.0, variant=GRU, uses=[RETAIN], seed=seed, retain_rows=rows, warm_up=warm_up)
        for rows, warm_up, mu, seed in ((4, 0, 0.25, 1), (4, 8, 0.5, 1), (16, 0, 0.75, 1))
    ]
    assert markdown(over_retain(study(runs), "forget05")).splitlines()[2:] == [
        "| GA | 4 | 0 | -5.00 | 0.2500 | 1 |",
        "| GA | 4 | 8 | -5.00 | 0.5000 | 1 |",
        "| GA | 16 | 0 | -5.00 | **0.7500** | 1 |",
    ]


def test_calibration_counts_what_has_failed_and_leaves_out_who_was_not_asked() -> None:
    done = [Calibrated(0.9, 0.25, {"MU": 0.75, "FQ (ln p)": -4.0})]
    better = [Calibrated(0.9, 0.5, {"MU": 0.75, "FQ (ln p)": -3.0})]
    runs = [
        run("GA", 0.5, -1.0, seed=1, calibrated=done),
        run("GA", 0.5, -1.0, seed=2, reason="calibration: out of memory"),
        run("GA", 0.5, -1.0, seed=3),
        run("GA", 0.5, -1.0, seed=1, variant=GRU, calibrated=better),
    ]
    table = calibration(study(runs), "forget05")
    assert markdown(table).splitlines() == [
        "| Method | Variant | FQ (ln p) at 90% | MU at 90% | α at 90% | n |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| GA | plain | -4.00 | 0.7500 | 0.25 | 1 of 2 |",
        "| GA | w/ GRU | **-3.00** | 0.7500 | 0.50 | 1 |",
    ]


def test_task_vectors_stand_at_every_strength_here_and_in_the_comparison() -> None:
    results = large(seeds=2)
    assert column(vectors(results, "forget05"), "strength") == ["0.5", "0.7", "0.5", "0.7"]
    assert column(comparison(results, "forget05"), "Variant")[-5:] == [
        "strength 0.5", "strength 0.7", "strength not stated", "strength 0.5", "strength 0.7",
    ]  # fmt: skip


def test_statistics_and_pairs() -> None:
    table = named(small(), "statistics")
    assert [[str(cell) for cell in row] for row in table.rows] == [
        ["GA", "forget05", "+0.1250 [+0.0000, +0.2500]", "+3.00 [+2.00, +4.00]", *"2101010"],
        ["NPO", "forget05", "+0.2500", "-1.00", *"2010001"],
        ["all", "all", "+0.1667 [+0.0000, +0.2500]", "+1.67 [+0.50, +4.00]", *"4111011"],
    ]
    assert column(named(small(), "pairs"), "improved") == [
        "both",
        "FQ (ln p) only, a tie",
        "MU only",
        "missing: npo-gru-forget05-2 has failed",
    ]


def test_every_run_is_in_the_table_of_runs() -> None:
    results = large()
    assert column(named(results, "runs"), "Run") == [each.name for each in results.runs]
    rows = markdown(named(small(), "runs")).splitlines()
    assert rows[-1].endswith("| failed | - | - | out of memory: 50% & more_or_less; log: logs/npo-gru-forget05-2.log |")


def test_over_gamma_and_rows_by_hand() -> None:
    at = ((0.1, 4, -3.0, 1), (0.1, 4, -5.0, 2), (0.4, 4, -2.0, 1), (0.1, 16, -1.0, 1))
    uses = ["gamma and rows"]
    made = [
        replace(run("GA", 0.5, fq, variant=GRU, seed=seed, uses=uses), gamma=gamma, retain_rows=rows)
        for gamma, rows, fq, seed in at
    ]
    table = tables.over_gamma_and_rows(study(made), "forget05")
    assert [column.heading for column in table.columns][3:] == ["γ 0.1", "γ 0.4", "n"]
    assert [[str(cell) for cell in row] for row in table.rows if row[2] == "FQ (ln p)"] == [
        ["GA", "4", "FQ (ln p)", "-4.00 ± 1.41", "-2.00", "3"],
        ["GA", "16", "FQ (ln p)", "-1.00", "-", "1"],
    ]


def test_tables_without_runs_are_left_out() -> None:
    assert [table.name for table in tables.tables(small())] == [
        "comparison-forget05",
        "directions",
        "statistics",
        "pairs",
        "runs",
    ]
    assert [table.name for table in tables.tables(large())] == [
        f"{name}-{split}"
        for name in ("comparison", "paths", "over-tau", "over-gamma", "ablation", "calibration", "vectors")
        for split in ("forget05", "forget10")
    ] + ["directions", "statistics", "pairs", "runs"]


# ---- the three forms -------------------------------------------------------------------------------------------------

NASTY = r"a|b & 50%_of \x {y} $z$ #1 ~ ^ <script>"
TABLE = Table("t", "T_1", "100% & more", [Column("A|B", number=False), Column("x_1")], [[NASTY, Span(1.0, None, None)]])


def test_latex_escapes_what_it_would_read_as_its_own() -> None:
    text = latex(TABLE)
    assert r"a\textbar{}b \& 50\%\_of \textbackslash{}x \{y\} \$z\$ \#1 \textasciitilde{} \textasciicircum{}" in text
    assert r"\caption{T\_1. 100\% \& more}" in text


@pytest.mark.parametrize("table", [*tables.tables(large(seeds=2)), TABLE], ids=lambda table: table.name)
def test_latex_is_well_formed(table: Table) -> None:
    """Environments nest, braces balance, every row has as many cells as there are columns."""
    text = latex(table)
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#~^|<>]", bare)
    rows = re.findall(r"^(?!\\caption)(.*) \\\\$", text, re.MULTILINE)
    assert len(rows) == len(table.rows) + 1
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns) - 1}


def test_markdown_keeps_a_cell_in_its_column() -> None:
    line = markdown(TABLE).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<script>" not in line


def test_csv_of_a_text_is_the_text() -> None:
    assert list(csv.reader(io.StringIO(comma_separated(TABLE)))) == [
        ["A|B", "x_1 mean", "x_1 low", "x_1 high"],
        [NASTY, "1.0", "", ""],
    ]


def test_cells_sort_by_their_number() -> None:
    cells = [Score((1.0, 3.0)), Score(()), Span(-0.5, -1.0, 0.0), "-36.0555†", "2 of 3", "GA", None, 7, ""]
    assert list(map(sort_value, cells)) == [2.0, "", -0.5, -36.0555, 2.0, "ga", "", 7, ""]


# ---- GRU in other ways -----------------------------------------------------------------------------------------------


def test_variants_stand_beside_plain_and_gru_of_the_same_seeds() -> None:
    """GA has one with the update rectified for seed 1 alone: seed 2 of the comparison is not its like."""
    own = run("GA", 0.625, -4.5, seed=1, variant="update", uses=(FURTHER,))
    recipe = {"methods": ["ga"], "variants": {"options": {"update": {"rectify_update": True}}}}
    whole = small(recipe=recipe)
    table = further(replace(whole, runs=[*whole.runs, own]), "forget05")
    assert [[str(cell) for cell in row] for row in table.rows] == [
        ["GA", "plain", "-6.00", "0.2500", "1"],
        ["GA", "w/ GRU", "-4.00", "0.5000", "1"],
        ["GA", "w/ update", "-4.50", "0.6250", "1"],
    ]
    assert [[cell.is_best for cell in row[2:4]] for row in table.rows] == [[False, False], [True, False], [False, True]]
    assert "update: --rectify-update true" in table.note
    assert further(whole, "forget05").rows == []


def test_calibrated_variants_have_rows() -> None:
    at = [Calibrated(0.9, 0.5, {"MU": 0.7, "FQ (ln p)": -3.0})]
    own = run("GA", 0.625, -4.5, variant="update", uses=(FURTHER,), calibrated=at)
    rows = calibration(study([run("GA", 0.5, -4.0, variant=GRU, calibrated=at), own]), "forget05").rows
    assert [row[1] for row in rows] == ["w/ GRU", "w/ update"]
