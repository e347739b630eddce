"""`gru-fast attack`: what a run says of itself, all attacks and their report, a stop, several processes, wrong uses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import launched
import planted
import pytest
from processes import Processes

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.evaluation.record_folder import RecordFolder

QUICK = [
    "--formats", "int8", planted.HIDING_IN, "--samples", "2", "--temperatures", "1.0", "--prefixes", "0.5",
    "--ways", "prefix", "--relearn-rows", "2", "--relearn-steps", "1", "2", "--relearn-rates", "1e-3",
    "--relearn-on", "forget", "--evaluate", f"max_length={planted.LENGTH}", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> planted.Models:
    return planted.make(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def run(models: planted.Models, tmp_path: Path) -> Path:
    """A copy of the run that hides, without attacks."""
    return Path(shutil.copytree(models.hiding, tmp_path / "run"))


def attack(run: Path, models: planted.Models, *argv: str) -> int:
    return main(["attack", str(run), "--retrained", str(models.retrained), *QUICK, *argv])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command said: one line, no traceback."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gru-fast")]
    assert len(lines) == 1, lines
    return lines[0]


def without_time(summaries: dict[str, Any]) -> dict[str, Any]:
    return {name: {**summary, "seconds": None} for name, summary in summaries.items()}


def test_all_attacks_a_report_and_nothing_twice(
    models: planted.Models, run: Path, capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    """What the run says: benchmark, split, data, template, and what it started from."""
    assert attack(run, models, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [*printed] == ["quantize", "relearn", "sample", "extract"]
    found = runs.read_run(run).attacks["tofu-forget05"]
    assert found == printed
    rows = {(row["what"], row["score"]): row["back"] for row in found["quantize"]["findings"]}
    assert rows[planted.HIDING_IN, "forget prob"] > 0.95 > 0.1 > rows["int8", "forget prob"]
    loads.clear()
    assert attack(run, models) == 0
    text = capsys.readouterr().out
    assert loads == []
    assert text.count("back at most: ") == 4
    assert main(["report", str(run)]) == 0
    assert "back: quantize  back: relearn  back: sample  back: extract" in capsys.readouterr().out


def test_a_dry_run_says_what_it_will_take(
    models: planted.Models, run: Path, capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    assert attack(run, models, "--dry-run", "--attacks", "sample", "relearn") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("sample: 4 questions, greedily to 3 models and 2 times at 1 temperatures to 2")
    assert lines[-1].startswith("relearn: 2 times 2 steps of 4 rows (unlearned, retrained; forget; 1 learning rates)")
    assert loads == []
    assert not (run / "attacks").exists()


def test_a_stop_changes_nothing(
    models: planted.Models, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the samples of the second model; what is there is not done again."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    chosen = ["--attacks", "sample", "extract", "--batch-size", "3"]
    assert attack(other, models, *chosen) == 0
    append, calls = RecordFolder.append, []

    def stopping(folder: RecordFolder, name: str, rows: Any) -> None:
        if "retrained/temperature-1" in folder.path.as_posix() and len(calls) == 1:
            calls.append("stop")
            raise KeyboardInterrupt
        if "retrained/temperature-1" in folder.path.as_posix():
            calls.append("kept")
        append(folder, name, rows)

    monkeypatch.setattr(RecordFolder, "append", stopping)
    assert attack(run, models, *chosen) == 130
    assert calls == ["kept", "stop"]
    assert attack(run, models, *chosen) == 0
    assert len(calls) - 2 == 3 - 1  # 8 answers in batches of 3, of which one was there
    found, expected = (runs.read_run(place).attacks["tofu-forget05"] for place in (run, other))
    for name in ("sample", "extract"):
        assert found[name]["findings"] == expected[name]["findings"]


def test_processes_share_the_rows(models: planted.Models, run: Path, tmp_path: Path, processes: Processes) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    chosen = ["--retrained", str(models.retrained), *QUICK, "--attacks", "sample", "relearn", "--batch-size", "1"]
    assert main(["attack", str(run), *chosen]) == 0
    processes.run(launched.command, 2, ["attack", str(other), *chosen])
    found, expected = (runs.read_run(place).attacks["tofu-forget05"] for place in (other, run))
    assert found["sample"]["findings"] == expected["sample"]["findings"]
    # Every process takes the steps of one on all rows that are taught, and asks about one row of two.
    pairs = list(zip(found["relearn"]["findings"], expected["relearn"]["findings"], strict=True))
    assert len(pairs) == 6
    for ours, alone in pairs:
        assert ours["after"] == pytest.approx(alone["after"], rel=1e-5)
        assert ours["retained_after"] == pytest.approx(alone["retained_after"], rel=1e-5)


def test_the_model_itself_is_no_original(models: planted.Models, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attack(run, models, "--original", str(run)) == 1
    assert "original: it is the model under attack itself" in said(capsys)


def test_a_retrained_model_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(run), "--retrained", "./nowhere", *QUICK]) == 1
    assert "retrained: model: no folder or file nowhere" in said(capsys)
    assert not (run / "attacks").exists()


def test_options_are_refused_all_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--attacks", "quantise", "--formats", "int3", "--samples", "0", "--evaluate", "max_rows=2"]
    assert main(["attack", str(run), *wrong]) == 1
    text = said(capsys)
    assert "3 errors" in text
    for part in ('got "quantise", did you mean "quantize"?', 'got "int3"', "samples: expected at least 1, got 0"):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--evaluate", "split=forget01"], "evaluate: split is not to be chosen there; give --split"),
        (["--evaluate", "rows=3"], 'evaluate: gru-fast eval tofu has no option "rows"'),
        (["--benchmark", "muse", "--idk-file", "x"], "--idk-file: no option of --benchmark muse"),
        (["--relearn-rows", "4"], "relearn_rows: expected fewer than the 4 rows to forget"),
    ],
)
def test_wrong_uses(run: Path, argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(run), *QUICK, *argv]) == 1
    assert problem in said(capsys)
    assert not (run / "attacks").exists()


def test_a_model_on_the_hub_needs_a_folder(models: planted.Models, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(models.data), "--split", "forget05"]
    assert main(["attack", "owner/model", "--original", str(models.original), *data, *QUICK]) == 1
    assert "output_dir: owner/model is no folder that could hold the attacks; give --output-dir" in said(capsys)
