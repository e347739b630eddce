"""Work whose records can be told at a glance, done by one process or by several; for test_record_folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gru_fast.evaluation.record_folder import RecordFolder, RowSet, score_sets
from gru_fast.evaluation.scoring import DivergedError
from gru_fast.runs.processes import here


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
BATCHES = [[11, 13], [12, 14], [10], [22, 21], [20]]  # of both sets of shared(), in the order of the work


def shared(
    path: Path, breaks: tuple[int, int] | None = None, settings: dict[str, Any] | None = None, **how: Any
) -> list[list[int]]:
    """Two sets, of the rows above and of three more; returns the groups that this process has done.

    ``breaks``: the number of a process, and the call at which it breaks down.
    """
    rank, _ = here()
    work = Work(breaks[1] if breaks is not None and breaks[0] == rank else None)
    sets = [RowSet("one", ROWS, work, LENGTHS), RowSet("two", [20, 21, 22], work, [1, 2, 3])]
    folder = RecordFolder(path, {"model": "a"} if settings is None else settings, **how)
    score_sets(folder, sets, batch_size=2, progress=False, stale=path / "summary.json")
    return work.groups


def refused(path: Path, settings: list[str]) -> str:
    """What a process says that cannot go on; ``settings``: the model of each."""
    rank, _ = here()
    try:
        shared(path, settings={"model": settings[rank]})
    except ValueError as error:
        return str(error)
    return ""


def diverges(path: Path) -> str:
    """What a process says of a model that gives NaN for rows of the second process alone, and then goes on with."""

    def work(rows: list[int]) -> list[dict[str, Any]]:
        if 14 in rows:
            raise DivergedError("NaN or Inf for 1 of 2 sequences")
        return [{"square": row**2} for row in rows]

    try:
        score_sets(RecordFolder(path, {}), [RowSet("one", ROWS, work, LENGTHS)], batch_size=2, progress=False)
    except DivergedError as error:
        return str(error)
    return ""


def writes(path: Path) -> int:
    """How often a process that begins anew writes the settings, or takes an old file away."""
    with (
        patch("gru_fast.evaluation.record_folder.write_json") as written,
        patch("pathlib.Path.unlink") as removed,
        patch("pathlib.Path.glob", return_value=[path / "old.jsonl"]),
    ):
        RecordFolder(path, {"model": "a"}, overwrite=True)
    return written.call_count + removed.call_count


def bars(path: Path) -> str:
    """What a process shows of its progress."""
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        sets = [RowSet("one", ROWS, Work(), LENGTHS)]
        score_sets(RecordFolder(path, {"model": "a"}), sets, batch_size=2)
    return shown.getvalue()
