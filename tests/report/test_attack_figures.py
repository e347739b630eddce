"""Figures and columns of attacks: which share is drawn where, in which colour, and what stands in the table."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from run_folders import evaluated, finetuned, unlearned

from gru_fast.attacks.parts.outcome import Finding
from gru_fast.report import attack_figures, files, table
from gru_fast.report.collect import Entry, collect
from gru_fast.report.figures import GRU, PLAIN
from gru_fast.runs.files import write_json

FORMATS = ("int8", "nf4")
BACK = {False: (0.1, 0.9), True: (0.05, 0.4)}  # by format; relearned and sampled likewise, over steps


def attacked(folder: Path, shares: tuple[float, float], name: str = "tofu-forget05") -> Path:
    """Attacks that got so much of the way from 0.2 to 0.8, the retrained model half as far from 0.4."""

    def finding(share: float, at: dict[str, Any], score: str = "forget prob") -> dict[str, Any]:
        after, retained = 0.2 + 0.6 * share, 0.4 + 0.2 * share
        return Finding("x", score, 0.2, after, 0.8, 0.4, retained, at=at).to_json()

    found = {
        "quantize": [finding(share, {"format": name}) for share, name in zip(shares, FORMATS, strict=True)],
        "relearn": [
            finding(share, {"source": source, "learning_rate": 1e-3, "step": step})
            for source in ("forget", "near")
            for share, step in zip(shares, (1, 10), strict=True)
        ],
        "sample": [
            finding(share, {"temperature": 1.0, "k": k}, "forget ROUGE-L")
            for share, k in zip(shares, (1, 8), strict=True)
        ],
    }
    for attack, findings in found.items():
        write_json(folder / "attacks" / name / attack / "summary.json", {"attack": attack, "findings": findings})
    return folder


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    evaluated(finetuned(tmp_path / "full"), 0.75, -20.0)
    for rectify, shares in BACK.items():
        attacked(evaluated(unlearned(tmp_path / f"npo-{rectify}", "npo", rectify), 0.5, -3.0), shares)
    return collect([tmp_path])


def test_bars_by_format(entries: list[Entry]) -> None:
    axis = attack_figures.formats(entries).axes[0]
    bars = [(to_hex(bar.get_facecolor()), pytest.approx(bar.get_height())) for bar in axis.patches]
    assert bars == [(PLAIN, 0.1), (PLAIN, 0.9), (GRU, 0.05), (GRU, 0.4)]
    marks = [line.get_ydata()[0] for line in axis.get_lines() if line.get_linestyle() == "--"]
    assert marks == [pytest.approx(share / 2) for share in (0.1, 0.9, 0.05, 0.4)]
    assert [text.get_text() for text in axis.get_xticklabels()] == [*FORMATS]


def test_curves_over_steps_and_samples(entries: list[Entry]) -> None:
    for figure, titles, x in (
        (attack_figures.steps(entries), ["forget, learning rate 0.001", "near, learning rate 0.001"], [1, 10]),
        (attack_figures.samples(entries), ["temperature 1"], [1, 8]),
    ):
        assert [axis.get_title() for axis in figure.axes] == titles
        for axis in figure.axes:
            drawn = {to_hex(line.get_color()): line for line in axis.get_lines() if line.get_marker() == "o"}
            for color, shares in ((PLAIN, BACK[False]), (GRU, BACK[True])):
                assert list(drawn[color].get_xdata()) == x
                assert list(drawn[color].get_ydata()) == pytest.approx(shares)


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    evaluated(unlearned(tmp_path / "npo", "npo"), 0.5, -3.0)
    assert [draw(collect([tmp_path])) for draw in attack_figures.FIGURES.values()] == [None, None, None]


def test_files_and_columns(entries: list[Entry], tmp_path: Path) -> None:
    names = {file.name for file in files.write(entries, tmp_path / "report")}
    assert {"attack-quantize.png", "attack-relearn.png", "attack-sample.png"} <= names
    lines = table.text(entries).splitlines()
    assert "back: quantize  back: relearn  back: sample" in lines[0]
    assert "90%" in next(line for line in lines if "npo-False" in line)
    assert "40%" in next(line for line in lines if "npo-True" in line)
    assert "back: of the scores" in table.markdown(entries)
    rows = {row["run"].rpartition("/")[2]: row for row in csv.DictReader(io.StringIO(table.comma_separated(entries)))}
    assert float(rows["npo-True"]["attacks.quantize.back"]) == pytest.approx(0.4)
    assert float(rows["npo-True"]["attacks.quantize.retained_back"]) == pytest.approx(0.2)
    assert rows["full"]["attacks.quantize.back"] == ""


def test_attacks_without_an_evaluation(tmp_path: Path) -> None:
    attacked(unlearned(tmp_path / "npo", "npo"), (0.1, 0.9))
    (entry,) = collect([tmp_path])
    assert entry.evaluation is None
    assert [*entry.attacks] == ["quantize", "relearn", "sample"]
    assert "90%" in table.text([entry])
