"""Records: what is finished is never scored again, and processes share the rest without a trace in what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import squares
from processes import Processes
from squares import BATCHES, LENGTHS, RECORDS, ROWS, Work

from gru_fast.evaluation.record_folder import RecordFolder, RowSet, differing, read_settings, score_sets


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


# ---- several processes -----------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    assert squares.shared(folder) == BATCHES
    found = contents(folder)
    assert list(found) == ["one.jsonl", "settings.json", "two.jsonl"]
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_take_turns_at_whole_batches_through_all_sets(
    processes: Processes, tmp_path: Path, alone: dict[str, bytes], world: int
) -> None:
    assert processes.run(squares.shared, world, tmp_path) == [BATCHES[rank::world] for rank in range(world)]
    assert contents(tmp_path) == alone
    assert processes.run(squares.shared, world, tmp_path) == [[]] * world  # nothing is done twice
    assert contents(tmp_path) == alone


@pytest.mark.parametrize("then", [1, 2, 3, 4])
def test_any_number_of_processes_goes_on_with_what_others_left(
    processes: Processes, tmp_path: Path, alone: dict[str, bytes], then: int
) -> None:
    """Of three, the second breaks down at its second batch: it has done [12, 14], and never gets to [20]."""
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(AssertionError) as failed:
        processes.run(squares.shared, 3, tmp_path, breaks=(1, 1))
    assert "process 1:" in str(failed.value)
    assert "KeyboardInterrupt" in str(failed.value)
    assert str(failed.value).count("RuntimeError: another of the 3 processes has stopped, and says itself why") == 2
    parts = ["one.part0.jsonl", "one.part1.jsonl", "one.part2.jsonl", "two.part0.jsonl"]
    assert list(contents(tmp_path)) == sorted([*parts, "settings.json"])
    with (tmp_path / "one.part1.jsonl").open("a") as cut_off:
        cut_off.write('{"index": 0, "squ')
    left = [[20]]
    if then == 1:
        assert squares.shared(tmp_path) == left
    else:
        assert processes.run(squares.shared, then, tmp_path) == [left, *[[]] * (then - 1)]
    assert contents(tmp_path) == alone


def test_a_model_that_has_diverged_for_one_process_has_for_all(processes: Processes, tmp_path: Path) -> None:
    """Else the others would wait in another exchange than one that goes on."""
    assert processes.run(squares.diverges, 2, tmp_path) == ["NaN or Inf for 1 of 2 sequences"] * 2
    assert not (tmp_path / "one.jsonl").exists()


def test_processes_go_on_where_one_alone_was_stopped(
    processes: Processes, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares.shared(tmp_path, breaks=(0, 2))
    left = BATCHES[2:]  # dealt anew: no process has more of it than another
    assert processes.run(squares.shared, 2, tmp_path) == [left[0::2], left[1::2]]
    assert contents(tmp_path) == alone


def test_overwriting_takes_the_parts_away(processes: Processes, tmp_path: Path, alone: dict[str, bytes]) -> None:
    tmp_path.joinpath("one.part7.jsonl").write_text('{"index": 0, "square": 1}\n')
    tmp_path.joinpath("settings.json").write_text('{"model": "b"}')
    said = processes.run(squares.refused, 2, tmp_path, ["a", "a"])
    assert said == [f"{tmp_path}: holds records with model 'b', this evaluation has 'a'; {MEND}"] * 2
    assert (tmp_path / "one.part7.jsonl").is_file()
    processes.run(squares.shared, 2, tmp_path, overwrite=True)
    assert contents(tmp_path) == alone


def test_the_first_process_alone_begins_a_folder(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(squares.writes, 3, tmp_path) == [2, 0, 0]


MEND = "give another output folder, or --overwrite to score anew"


def test_processes_with_different_settings_are_refused(processes: Processes, tmp_path: Path) -> None:
    said = processes.run(squares.refused, 3, tmp_path / "new", ["a", "a", "b"])
    assert len(set(said)) == 1
    assert said[0].endswith("process 2 has model 'b', process 0 has 'a'; give all processes the same command, model "
                            "and data")  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_rows_that_the_first_process_cannot_see_are_missed(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, {"model": "a"})
    folder.append("set", RECORDS[:3])
    with pytest.raises(RuntimeError, match=r"set\.jsonl: 2 of 5 rows are missing after all were scored; do all proc"):
        folder.close("set", 5)


def test_the_first_process_alone_shows_its_share(processes: Processes, tmp_path: Path) -> None:
    first, second = processes.run(squares.bars, 2, tmp_path)
    assert "one (process 1 of 2): 100%" in first
    assert "3/3" in first  # [11, 13] and [10]
    assert second == ""
