"""The paper's values: what they are, that they agree with each other, and beside which runs they stand."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ks_2samp
from study_results import run, small, study

from gru_fast.study import load, paper, results
from gru_fast.study import tables as study_tables
from gru_fast.study.plan import Plan
from gru_fast.study.render import Score, Table
from gru_fast.study.results import (
    ABLATION,
    CLIPPED,
    COMPARISON,
    GRU,
    PLAIN,
    SENSITIVITY,
    VECTOR,
    Calibrated,
    StudyResults,
)
from gru_fast.study.tables import ablation, calibration, comparison, over_gamma, over_tau, tables
from gru_fast.unlearn import methods
from gru_fast.unlearn.task_vector_options import METHODS as VECTORS

STUDIES = ("tofu-phi", "tofu-llama2", "muse-books", "wmdp-zephyr")
PHI, LLAMA, FQ = "Phi-1.5", "Llama-2-7B-chat", "FQ (ln p)"


def known(use: str, backbone: str, split: str, method: str, variant: str = "", **settings: paper.Setting) -> list[str]:
    entry = paper.find(use, backbone, split, method, variant, **settings)
    return [] if entry is None else list(entry.scores.values())


def column(table: Table, heading: str) -> list[object]:
    place = [each.heading for each in table.columns].index(heading)
    return [row[place] for row in table.rows]


# ---- what they are ---------------------------------------------------------------------------------------------------


def test_each_table_has_as_many_rows_as_in_the_paper() -> None:
    assert Counter(entry.table for entry in paper.entries()) == {
        "1": 8, "2": 64, "3": 11, "4": 12, "5": 2, "6": 27, "7": 35, "8": 6, "9": 14, "10": 14,
    }  # fmt: skip


def test_every_entry_has_known_names_and_scores_in_their_units() -> None:
    titles = {methods.get(name).title for name in methods.names()} | {*VECTORS.values(), "Original", "Retrained"}
    headings = {
        PHI: [FQ, "MU"],
        LLAMA: [FQ, "MU"],
        "Zephyr-7B-beta": ["WMDP Bio", "WMDP Cyber", "MMLU"],
        "ICLM-7B": ["VerbMem forget", "KnowMem forget", "KnowMem retain"],
    }
    for entry in paper.entries():
        assert entry.method in titles, entry
        assert list(entry.scores) == headings[entry.backbone], entry
        for heading, printed in entry.scores.items():
            low, high = (-60, 0) if heading == FQ else (0, 100) if "Mem" in heading else (0, 1)
            assert low <= float(printed) <= high, entry
        assert entry.settings.keys() <= {"gamma", "tau", "strength", "target", "corpus"}, entry


@pytest.mark.parametrize(("split", "count"), [("forget05", 200), ("forget10", 300)])
def test_every_forget_quality_is_one_that_as_many_rows_can_have(split: str, count: int) -> None:
    """ln p of the Kolmogorov-Smirnov test of n rows against n depends on k alone, the most that one is ahead by."""
    grid = [math.log(ks_2samp(range(count), [i + k for i in range(count)]).pvalue) for k in range(10, count // 2)] + [
        0.0
    ]
    for entry in paper.entries():
        if entry.split == split and FQ in entry.scores:
            printed = entry.scores[FQ]
            unit = 10.0 ** -len(printed.partition(".")[2])  # some are rounded, some cut
            is_one = min(abs(value - float(printed)) for value in grid) < 1.001 * unit
            assert is_one != ("none that" in entry.note), entry
    assert sum("none that" in entry.note for entry in paper.entries()) == 3


def test_what_is_printed_twice_is_the_same() -> None:
    """One row of one setting, in whichever table; and Table 2's rows again in Tables 6 (no clipping) and 8."""
    found: dict[object, list[str]] = {}
    for entry in paper.entries():
        key = (entry.use, entry.backbone, entry.split, entry.method, entry.variant, tuple(entry.settings.items()))
        if entry.unshown == "the row of Table 2 again, rounded":
            whole = known(COMPARISON, PHI, str(entry.split), "Original")
            assert list(entry.scores.values()) == [f"{float(whole[0]):.1f}", f"{float(whole[1]):.2f}"]
        elif key in found:
            assert found[key] == list(entry.scores.values()), entry
        found.setdefault(key, list(entry.scores.values()))
    for method, gamma in (("GA", 0.8), ("NPO", 0.8), ("GD", 0.05)):
        of = {"gamma": gamma, "tau": None}
        assert known(COMPARISON, LLAMA, "forget05", method, GRU, **of) == known(
            SENSITIVITY, LLAMA, "forget05", method, GRU, **of
        )
    for method in ("GA", "NPO"):
        assert known(COMPARISON, LLAMA, "forget05", method, PLAIN) == known(ABLATION, LLAMA, "forget05", method, PLAIN)
        of = {"gamma": 0.8, "tau": 100.0}
        assert known(ABLATION, LLAMA, "forget05", method, GRU, **of) == known(
            SENSITIVITY, LLAMA, "forget05", method, GRU, **of
        )


@pytest.mark.parametrize("name", STUDIES)
def test_settings_of_the_comparison_are_those_of_the_recipes(name: str) -> None:
    plan = Plan(load.read(load.find(name)), Path("out"), is_dry=True)
    for planned in plan.runs():
        run = planned.run
        if run.variant != GRU or COMPARISON not in run.uses or run.method == "rmu":
            continue
        corpus = {"corpus": "books"} if plan.recipe.benchmark == "muse" else {}
        of = {"gamma": run.gamma, "tau": run.tau, **corpus}
        assert known(COMPARISON, plan.recipe.backbone, run.split, run.title, GRU, **of), run.name


def test_the_page_counts_them_as_they_are() -> None:
    """docs/paper.md: rows of each table, of all, of those in no table, and of those that are marked."""
    text = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    entries = paper.entries()
    rows = re.findall(r"^\| (\d+): .*? \| (\d+) \| .* \| (.*) \|$", text, re.MULTILINE)
    unshown = Counter(entry.table for entry in entries if entry.unshown)
    assert {table: int(count) for table, count, _ in rows} == Counter(entry.table for entry in entries)
    assert {table: int(where.rpartition("but for ")[2]) for table, _, where in rows if "but" in where} == unshown
    assert f"All {len(entries)} rows" in text
    assert f"{sum(unshown.values())} rows are in the file and in no table" in text
    assert sum(bool(entry.lacks) for entry in entries) == 5
    for says, count in re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]+ \|$", text, re.MULTILINE):
        note = _NOTES.get(says.partition(":")[0].partition(" of ")[0])
        assert note, says
        assert sum(bool(re.search(note, entry.note)) for entry in entries) == int(count), says
    for value in re.findall(r"^\| Table .*? \| (-[\d.]+) \|", text, re.MULTILINE):
        assert sum(f"FQ {value} " in entry.note for entry in entries) == 1


_NOTES = {  # the first words of a line of the page -> what the notes of its rows say
    "gamma": "gamma is inferred",
    "the corpus": "names no corpus",
    "gamma and tau": "are taken as those of Table 2",
    "no clipping for GD in Table 7": "as of no clipping",
    'tau 100 in Table 8\'s "w/ GRU"': "tau is inferred",
    'gamma "N/A" in Table 7 is gamma 1': "gamma is printed as N/A",
    "TV and TRU to two places": "to two places",
    "RMU w/ GRU": "gamma and tau are not stated",
    "Table 6, GD, tau 0.1": "without its sign",
}


# ---- where they stand ------------------------------------------------------------------------------------------------


def imagined(name: str) -> StudyResults:
    """A study of the package as if all its runs were done, each score 0.5."""
    plan = Plan(load.read(load.find(name)), Path("out"), is_dry=True)
    recipe = plan.recipe
    plane = {"tofu": ("MU", FQ), "muse": ("KnowMem retain", "PrivLeak"), "wmdp": ("MMLU", "WMDP Cyber")}[
        recipe.benchmark
    ]
    headings = {heading for entry in paper.entries() for heading in entry.scores}
    scores = dict.fromkeys([*headings, *plane], 0.5)
    runs = []
    for planned in plan.runs():
        run = replace(planned.run, scores=scores)
        if run.kind == results.UNLEARNED and plan._is_in(recipe.calibration, run):
            run = replace(run, calibrated=[Calibrated(share, 0.5, scores) for share in recipe.calibration.shares])
        runs.append(run)
    return study(
        runs,
        benchmark=recipe.benchmark,
        backbone=recipe.backbone,
        splits=list(recipe.splits),
        plane=dict.fromkeys(plane, "higher is better"),
        recipe={"data": recipe.data},
    )


def texts(found: StudyResults) -> Iterator[str]:
    for table in tables(found):
        yield from (cell for row in table.rows for cell in row if isinstance(cell, str))


def test_every_entry_stands_in_a_table_of_a_study_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each score is exchanged for a text that is nowhere else."""
    marked = [
        replace(entry, scores={heading: f"entry {i} {heading}" for heading in entry.scores}, note="")
        for i, entry in enumerate(paper.entries())
    ]
    monkeypatch.setattr(paper, "entries", lambda: marked)
    monkeypatch.setattr(study_tables, "directions", lambda results: Table("", "", "", [], []))  # it computes with them
    there = {text for name in STUDIES for text in texts(imagined(name))}
    for entry in marked:
        shown = {score in there for score in entry.scores.values()}
        assert shown == {not entry.unshown}, entry
    assert Counter(entry.table for entry in marked if entry.unshown) == {"7": 11, "9": 2, "10": 2}


@pytest.mark.parametrize("name", ["tofu-tiny", "tofu-smollm2"])
def test_a_model_that_the_paper_has_not_has_none_of_its_values(name: str) -> None:
    found = imagined(name)
    beside = {table.name for table in tables(found) for column in table.columns if "paper" in column.heading}
    assert beside <= {"directions"}  # which compares signs alone, and says so
    shaped = [table for table in tables(found) if "In the shape of the paper's" in table.note]
    assert {table.name.rpartition("-")[0] for table in shaped} == {
        "comparison", "over-tau", "over-gamma", "ablation", "calibration",
    }  # fmt: skip
    for table in shaped:
        assert table.note.endswith("No value of the paper is comparable: it has none of this model."), table.name


def test_values_stand_beside_runs_of_the_same_backbone() -> None:
    phi = comparison(small(backbone="phi-1_5"), "forget05")
    assert column(phi, "paper: MU") == ["0.5200", "0.5250", "0.0000", None, "0.3565", None]
    assert column(phi, f"paper: {FQ}") == ["-28.8476", "0.0000", "-28.0555", None, "-11.9082", None]
    assert phi.note.endswith("Paper: as printed, of the same backbone, split and settings.")
    for other in ("", "gpt2", "Llama-2-70B"):
        assert not any("paper" in each.heading for each in comparison(small(backbone=other), "forget05").columns)


@pytest.mark.parametrize(
    ("settings", "printed"),
    [
        ({"gamma": 0.8, "tau": 0.01}, "0.3587"),
        ({"gamma": 0.8, "tau": 0.001}, None),  # that of forget10
        ({"gamma": 0.9, "tau": 0.01}, None),
        ({"gamma": 0.8, "tau": None}, None),
    ],
)
def test_a_run_of_other_settings_has_none_beside_it(settings: dict[str, float | None], printed: str | None) -> None:
    runs = [run("GA", 0.5, -1.0), run("GA", 0.5, -1.0, variant=GRU, **settings)]
    assert column(comparison(study(runs, backbone=PHI), "forget05"), "paper: MU") == ["0.0000", printed]


def test_runs_of_several_settings_have_none_beside_them() -> None:
    runs = [run("GA", 0.5, -1.0)]
    runs += [run("GA", 0.5, -1.0, variant=GRU, gamma=0.8, tau=tau, seed=seed) for seed, tau in ((1, 0.01), (2, 0.1))]
    assert column(comparison(study(runs, backbone=PHI), "forget05"), "paper: MU") == ["0.0000", None]


def test_a_table_of_a_backbone_in_other_settings_says_so() -> None:
    runs = [run("GA", 0.5, -1.0, variant=variant, tau=1.0, uses=[ABLATION]) for variant in (PLAIN, CLIPPED, GRU)]
    table = ablation(study(runs, backbone=PHI), "forget05")
    assert table.note.endswith("No value of the paper is comparable: it has none of Phi-1.5 in these settings.")
    assert column(ablation(study(runs, backbone=LLAMA), "forget05"), "paper: MU") == ["0.0000", None, None]
    runs = [replace(each, tau=100.0 if each.variant != PLAIN else None) for each in runs]
    table = ablation(study(runs, backbone=LLAMA), "forget05")
    assert column(table, "paper: MU") == ["0.0000", "0.0000†", "0.5149†"]
    assert table.note.endswith("† GA: tau is inferred: the rows w/ GRU are those of Table 6 at tau 100.")


def test_task_vectors_stand_at_the_papers_strength_or_in_a_row_of_their_own() -> None:
    runs = [
        run(title, 0.5, -1.0, variant="", kind=VECTOR, strength=strength)
        for title in ("TV", "TRU")
        for strength in (0.7, 5.0)
    ]
    table = comparison(study(runs, backbone=PHI), "forget05")
    assert column(table, "Variant") == [
        "strength 0.7",
        "strength 5",
        "strength not stated",
        "strength 0.7",
        "strength 5",
    ]
    assert column(table, f"paper: {FQ}") == [None, None, "-46.18†", "-9.04†", None]
    assert column(table, "MU ↑")[2] == Score(())


def test_the_sign_that_is_missing_in_table_6_is_marked() -> None:
    runs = [run("GD", 0.5, -1.0, variant=GRU, gamma=0.05, tau=tau, uses=[SENSITIVITY]) for tau in (0.1, 1.0)]
    table = over_tau(study(runs, backbone=LLAMA), "forget05")
    assert table.rows[1][3:5] == ["-14.0316†", "-15.1577†"]
    assert (
        "GD: gamma is inferred from Tables 6 and 7; FQ at tau 0.1 is printed as 14.0316, without its sign" in table.note
    )


def test_table_7_of_gd_stands_beside_runs_without_clipping() -> None:
    """Printed for tau 1; its value at gamma 0.05 is that of Table 6 without clipping, not that at tau 1."""
    for tau, printed in ((1.0, None), (None, "-14.0316†")):
        runs = [run("GD", 0.5, -1.0, variant=GRU, gamma=gamma, tau=tau, uses=[SENSITIVITY]) for gamma in (0.05, 0.1)]
        table = over_gamma(study(runs, backbone=LLAMA), "forget05")
        assert table.rows[1][4] == printed
        assert table.rows[1][3] == ("-15.1577†" if tau else "-12.4230†")


def test_calibration_at_a_share_and_of_the_settings() -> None:
    at = [Calibrated(share, 0.5, {"MU": 0.5, FQ: -1.0}) for share in (0.85, 0.9)]
    runs = [
        run("GA", 0.5, -1.0, calibrated=at),
        run("GA", 0.5, -1.0, variant=GRU, gamma=0.8, tau=0.01, calibrated=at),
        run("NPO", 0.5, -1.0, variant=GRU, gamma=0.8, tau=1.0, calibrated=at),
    ]
    table = calibration(study(runs, backbone=PHI), "forget05")
    assert column(table, f"paper: {FQ} at 85%") == ["-22.0†", "-8.6†", None]
    assert column(table, "paper: MU at 90%") == ["0.47", "0.47†", None]


@pytest.mark.parametrize(("data", "printed"), [("muse-bench/MUSE-Books", "8.6971†"), ("muse-bench/MUSE-News", None)])
def test_values_of_books_are_not_beside_runs_on_news(data: str, printed: str | None) -> None:
    gd = replace(run("GD", split="forget"), scores={"KnowMem retain": 10.0})
    plane = {"KnowMem retain": "kept", "PrivLeak": "left"}
    found = study([gd], benchmark="muse", backbone="ICLM-7B", plane=plane, recipe={"data": data})
    table = comparison(found, "forget")
    if printed:
        assert column(table, "paper: KnowMem retain") == [printed]
    assert any("paper:" in each.heading for each in table.columns) == bool(printed)


@pytest.mark.parametrize(("split", "printed"), [("bio-cyber", ["0.5814", "0.2465"]), ("cyber", ["0.5814", None])])
def test_a_run_that_removes_one_topic_has_none_of_both_beside_it(split: str, printed: list[str | None]) -> None:
    scores = {"MMLU": 0.5, "WMDP Cyber": 0.3, "WMDP Bio": 0.3}
    original = replace(run("Original", split=split, variant="", kind="original"), method="", gamma=None)
    runs = [replace(each, scores=scores) for each in (original, run("GA", split=split))]
    plane = {"MMLU": "kept", "WMDP Cyber": "left"}
    table = comparison(study(runs, benchmark="wmdp", backbone="Zephyr-7B-beta", plane=plane), split)
    assert column(table, "paper: MMLU") == printed


def test_the_file_is_a_row_a_line() -> None:
    """So that a change of one row is a change of one line."""
    lines = paper.FILE.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == json.loads(paper.FILE.read_text(encoding="utf-8"))
