"""`gru-fast report`: what is printed, what is written, and which uses are refused in a line."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from run_folders import evaluated, steps_log, unlearned

from gru_fast.cli import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """GA without and with GRU, evaluated."""
    log = steps_log({"retain_loss": [1.0, 2.0], "cos": [-0.5, -0.25], "angle_before": [120.0, 104.0]})
    for rectify in (False, True):
        evaluated(unlearned(tmp_path / "runs" / f"ga-{rectify}", rectify=rectify, log=log), 0.5 + 0.25 * rectify, -1.0)
    return tmp_path / "runs"


def test_prints_a_table_and_writes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:6] for line in printed.splitlines()[2:]] == [
        ["GA", "no", "forget05", "-1.0000", "0.50", "0.5000"],
        ["GA", "yes", "forget05", "-1.0000", "0.50", "0.7500"],
    ]
    assert sorted(path.name for path in runs.parent.iterdir()) == ["runs"]


def test_writes_tables_and_figures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "--output", str(tmp_path / "report"), "--format", "md"]) == 0
    names = {"table.md", "table.csv", *(f"{name}.{f}" for name in ("steps", "angles", "tradeoff") for f in FORMATS)}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "report" / "table.md").read_text().strip()
    assert main(["report", str(runs), "--output", str(tmp_path / "report")]) == 0  # again, over the old one
    written = capsys.readouterr().out.splitlines()[-1]
    assert written == f"written to {tmp_path}/report: table.md, table.csv, steps.png, angles.png, tradeoff.png"


FORMATS = ("png", "svg")


def test_csv_can_be_piped(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["title"], row["rectify"], row["model_utility"]) for row in rows] == [
        ("GA", "False", "0.5"),
        ("GA", "True", "0.75"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; give the --output-dir of a run, or a folder of such"),
        (["runs", "--retain", "nowhere"], "nowhere: no such file or folder; give the retrained model's run"),
        (["runs", "--output", "file"], "--output: expected a folder, got the file file"),
        (["."], ".: no run in it; give the --output-dir of gru-fast unlearn or finetune, or a folder of such"),
    ],
)
def test_wrong_uses(
    runs: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments == ["."]:
        (runs.parent / "empty").mkdir()
    monkeypatch.chdir(runs.parent / "empty" if arguments == ["."] else runs.parent)
    Path("file").touch()
    assert main(["report", *arguments]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert re.fullmatch(rf"gru-fast report: \w+Error: {re.escape(message)}.*\n", found.err)
