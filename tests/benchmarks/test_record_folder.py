"""Records: what is finished is never scored again, and processes share the rest without a trace in what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gru_fast.benchmarks.record_folder import RecordFolder, RowSet, differing, read_settings, score_sets


class Work:
    """Squares numbers, remembers in which groups, and breaks down at the call it is told to."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.groups: list[list[int]] = []
        self.breaks_at = breaks_at

    def __call__(self, rows: list[int]) -> list[dict[str, Any]]:
        if len(self.groups) == self.breaks_at:
            raise KeyboardInterrupt
        self.groups.append(rows)
        return [{"square": row**2, "text": "a\u2028b"} for row in rows]


ROWS = [10, 11, 12, 13, 14]
LENGTHS = [1, 5, 3, 5, 2]
RECORDS = [{"index": i, "square": row**2, "text": "a\u2028b"} for i, row in enumerate(ROWS)]


def score(folder: RecordFolder, work: Work) -> list[dict[str, Any]]:
    score_sets(folder, [RowSet("set", ROWS, work, LENGTHS)], batch_size=2, progress=False)
    return list(folder.read("set").values())


def test_rows_are_scored_longest_first_and_kept_in_order(tmp_path: Path) -> None:
    work = Work()
    assert score(RecordFolder(tmp_path / "new", {"model": "a"}), work) == RECORDS
    assert work.groups == [[11, 13], [12, 14], [10]]
    lines = (tmp_path / "new" / "set.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line) for line in lines if line] == RECORDS
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["set.jsonl", "settings.json"]


@pytest.mark.parametrize("breaks_at", [0, 1, 2])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, breaks_at: int) -> None:
    work = Work(breaks_at)
    with pytest.raises(KeyboardInterrupt):
        score(RecordFolder(tmp_path, {"model": "a"}), work)
    rest = Work()
    assert score(RecordFolder(tmp_path, {"model": "a"}), rest) == RECORDS
    assert work.groups + rest.groups == [[11, 13], [12, 14], [10]]
    third = Work()
    assert score(RecordFolder(tmp_path, {"model": "a"}), third) == RECORDS
    assert third.groups == []


def test_a_line_cut_off_by_a_crash_is_scored_again(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, {"model": "a"})
    score(folder, Work())
    file = tmp_path / "set.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    work = Work()
    assert score(RecordFolder(tmp_path, {"model": "a"}), work) == RECORDS
    assert work.groups == [[14]]


@pytest.mark.parametrize("line", ["{", "[]", '{"square": 1}'])
def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path, line: str) -> None:
    score(RecordFolder(tmp_path, {"model": "a"}), Work())
    file = tmp_path / "set.jsonl"
    file.write_text(line + "\n" + file.read_text())
    with pytest.raises(ValueError, match=r"set\.jsonl: holds a line that is no record; delete the file"):
        score(RecordFolder(tmp_path, {"model": "a"}), Work())


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    score(RecordFolder(tmp_path, {"split": "forget05", "model": "a"}), Work())
    with pytest.raises(ValueError, match=r"holds records with model 'a', this evaluation has 'b'.*--overwrite"):
        RecordFolder(tmp_path, {"split": "forget05", "model": "b"})
    with pytest.raises(ValueError, match="with split 'forget05', this evaluation has None"):
        RecordFolder(tmp_path, {"model": "a"})
    assert len((tmp_path / "set.jsonl").read_text().split("\n")) == 6  # untouched
    work = Work()
    score(RecordFolder(tmp_path, {"split": "forget10", "model": "b"}, overwrite=True), work)
    assert len(work.groups) == 3
    assert read_settings(tmp_path) == {"split": "forget10", "model": "b"}


def test_records_of_unknown_settings_are_refused(tmp_path: Path) -> None:
    score(RecordFolder(tmp_path, {"model": "a"}), Work())
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="records of unknown settings"):
        RecordFolder(tmp_path, {"model": "a"})


def test_overwrite_scores_anew_with_the_same_settings(tmp_path: Path) -> None:
    score(RecordFolder(tmp_path, {"model": "a"}), Work())
    work = Work()
    score(RecordFolder(tmp_path, {"model": "a"}, overwrite=True), work)
    assert len(work.groups) == 3


def test_settings_are_compared_as_json_keeps_them() -> None:
    kept = json.loads(json.dumps({"rows": {"a": (1, 2)}, "length": 200, "limit": None}))
    assert differing(kept, {"rows": {"a": (1, 2)}, "length": 200, "limit": None}) == []
    assert differing(kept, {"rows": {"a": (1, 3)}, "length": 200, "limit": 5}) == ["rows", "limit"]


def test_progress_counts_what_was_done_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(RecordFolder(tmp_path, {}), Work(1))
    score_sets(RecordFolder(tmp_path, {}), [RowSet("set", ROWS, Work(), LENGTHS)], batch_size=2)
    shown = capsys.readouterr().err
    assert "set:  40%" in shown
    assert "set: 100%" in shown
