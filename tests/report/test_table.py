"""Tables: what stands in which column, how numbers are written, and the three forms."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from run_folders import evaluated, finetuned, save_run, unlearned

from gru_fast.report import table
from gru_fast.report.collect import Entry, collect
from gru_fast.runs.files import write_json


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """A retrained model, NPO without and with GRU, and a run that was not evaluated."""
    monkeypatch.chdir(tmp_path)
    evaluated(finetuned(Path("runs/retain95"), "retain95"), 0.61234, 0.0)
    evaluated(unlearned(Path("runs/npo"), "npo"), 0.5, -12.3456)
    evaluated(unlearned(Path("runs/npo-gru"), "npo", rectify=True), 0.51, None)
    unlearned(Path("runs/ga"))
    return collect(["runs"])


def test_text(entries: list[Entry]) -> None:
    head, rule, *rows, blank, note = table.text(entries).splitlines()
    assert head.startswith("method ")
    assert re.split("  +", head)[1:] == [
        "GRU", "split", "FQ (ln p)", "p", "MU", "forget ROUGE-L", "retain ROUGE-L", "forget prob", "retain prob",
        "s/step", "skipped", "run",
    ]  # fmt: skip
    assert set(rule) == {"-", " "}
    cells = [row.split() for row in rows]
    numbers = ["0.2500", "0.6250", "0.1250", "0.7500"]
    assert cells == [
        ["Retrained", "(retain95)", "forget05", "0.00", "0.50", "0.6123", *numbers, "1", "-", "runs/retain95"],
        ["GA", "no", "forget05", *"-------", "0.5", "3", "runs/ga"],
        ["NPO", "no", "forget05", "-12.35", "0.50", "0.5000", *numbers, "0.5", "3", "runs/npo"],
        ["NPO", "yes", "forget05", "-", "-", "0.5100", *numbers, "0.5", "3", "runs/npo-gru"],
    ]
    assert (blank, note) == ("", "runs/ga: not evaluated: gru-fast eval tofu --model runs/ga")
    ends = {row[: head.index("MU") + 2][-6:].strip() for row in rows}
    assert ends == {"0.6123", "-", "0.5000", "0.5100"}  # under the right end of their heading


def test_an_evaluation_of_some_rows_is_marked(tmp_path: Path) -> None:
    run = evaluated(finetuned(tmp_path / "run", "retain95"), 0.5, 0.0)
    [file] = run.glob("eval/*/summary.json")
    write_json(file, json.loads(file.read_text()) | {"settings": {"quick": True}})
    assert " forget05 (quick) " in table.text(collect([run]))


def test_columns_that_nobody_fills_are_left_out(tmp_path: Path) -> None:
    shown = table.columns(collect([finetuned(tmp_path)]))
    assert [column.title for column in shown] == ["method", "s/step", "run"]


def test_gamma_and_tau_stand_where_rectified_runs_differ(entries: list[Entry]) -> None:
    others = [unlearned(Path(f"runs/npo-gru-{gamma}"), "npo", True, gamma=gamma, tau=1.0) for gamma in (0.8, 0.05)]
    differing = collect([*(entry.run.folder for entry in entries), *others])
    gru, gamma, tau, split = table.columns(differing)[1:5]
    assert [gru.title, gamma.title, tau.title, split.title] == ["GRU", "gamma", "tau", "split"]
    cells = [*zip(gru.cells(differing), gamma.cells(differing), tau.cells(differing), strict=True)]
    assert sorted(row[1:] for row in cells if row[0] == "yes") == [("0.05", "1"), ("0.8", "-"), ("0.8", "1")]
    # That the runs without GRU have a gamma in their options says nothing of them.
    assert {row[1:] for row in cells if row[0] != "yes"} == {("-", "-")}
    assert [column.title for column in table.columns(collect(others))][1:4] == ["GRU", "gamma", "split"]


def test_markdown(entries: list[Entry]) -> None:
    head, form, *rows = table.markdown(entries).split("\n\n")[0].splitlines()
    assert head == (
        "| method | GRU | split | FQ (ln p) | p | MU | forget ROUGE-L | retain ROUGE-L | forget prob | retain prob | "
        "s/step | skipped | run |"
    )
    assert form == "| --- | --- | --- |" + " ---: |" * 9 + " --- |"
    assert rows[2] == (
        "| NPO | no | forget05 | -12.35 | 0.50 | 0.5000 | 0.2500 | 0.6250 | 0.1250 | 0.7500 | 0.5 | 3 | runs/npo |"
    )
    legend, notes = table.markdown(entries).split("\n\n")[1:]
    assert "its natural logarithm; 0 is a model that cannot be told" in legend
    assert notes == "- `runs/ga`: not evaluated: gru-fast eval tofu --model runs/ga\n"


def test_a_bar_in_a_name_does_not_end_a_cell(tmp_path: Path) -> None:
    run = unlearned(tmp_path)
    write_json(run / "run.json", {"title": "a|b", "steps": 1})
    assert "| a\\|b |" in table.markdown(collect([run]))


def test_a_table_for_each_benchmark(tmp_path: Path) -> None:
    evaluated(unlearned(tmp_path / "tofu"), 0.5, -1.0)
    muse = unlearned(tmp_path / "muse", benchmark="muse")
    write_json(muse / "eval" / "muse-news" / "summary.json", {"benchmark": "muse", "corpus": "news", "verbmem_f": 12.5})
    parts = table.text(collect([tmp_path])).split("\n\n")
    assert len(parts) == 2
    assert "VerbMem forget" in parts[0]
    assert "12.50" in parts[0]
    assert "VerbMem" not in parts[1]


def test_csv_has_every_number_unrounded(entries: list[Entry]) -> None:
    rows = list(csv.DictReader(io.StringIO(table.comma_separated(entries))))
    assert [row["run"] for row in rows] == ["runs/retain95", "runs/ga", "runs/npo", "runs/npo-gru"]
    npo = rows[2]
    assert (npo["title"], npo["method"], npo["rectify"], npo["state"]) == ("NPO", "npo", "False", "finished")
    assert (npo["gamma"], npo["split"], npo["model"]) == ("0.8", "forget05", "full")
    assert (npo["forget_quality.log_p"], npo["forget_quality.n"], npo["model_utility"]) == ("-12.3456", "4", "0.5")
    assert (npo["forget.truth_ratio_min"], npo["components.retain_prob"]) == ("0.5", "0.75")
    assert (npo["steps"], npo["skipped"], npo["degenerate"], npo["eval_seconds"]) == ("31", "1", "2", "3.0")
    assert not [name for name in npo if name.startswith("settings")]
    assert rows[1]["model_utility"] == ""
    assert rows[1]["note"] == "not evaluated: gru-fast eval tofu --model runs/ga"


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1.00"), (0.05, "0.05"), (0.01, "0.01"), (0.0099, "1e-02"), (3.14e-21, "3e-21"), (0, "0e+00")]
)
def test_p_in_two_digits(p: float, text: str) -> None:
    assert table.short_p(p) == text


def test_decimals_of_a_column() -> None:
    entry = Entry(run=None)  # type: ignore[arg-type]
    for value, text in ((0.12345, "0.1235"), (-12.345, "-12.35"), (3, "3"), (None, "-")):
        assert table.Column("", lambda _, value=value: value).cells([entry]) == [text]


def test_requests_stand_with_their_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"forget": ["leak/"], "method": "npo_gd", "rectify": True}
    result = {"benchmark": "own", "title": "forget", "split": "2 documents", "verdict": "not removed", "kept": 0.9561}
    save_run(Path("takedown"), asked, result)
    head, _, row = table.text(collect(["takedown"])).splitlines()
    assert head.split() == ["method", "GRU", "split", "verdict", "kept", "run"]
    assert row.split("  ") == ["forget", "yes", "2 documents", "not removed", "95.6%", "takedown"]
