"""Records of an evaluation, kept row by row: a stopped one goes on where it was, and processes share the rows.

A benchmark says what is asked of a model for a row; :func:`score_sets` has that done in batches. Several processes
(:mod:`gru_fast.runs.processes`) take turns at the batches, so that a batch holds the same rows however many they are,
and a record is the same bit for bit. Each process keeps what it has done in a file of its own, ``NAME.partR.jsonl``; in
the end the first one puts them together.

What a model writes is asked for batch by batch too, but rows of several batches, and sets, are written side by side: a
text is the same as far as it does not hang on the rounding of two tokens that are as probable.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from gru_fast.evaluation.scoring import DivergedError
from gru_fast.models.forward import by_length
from gru_fast.runs.files import write_json
from gru_fast.runs.processes import gather, here, on_first
from gru_fast.runs.progress import progress_bar

_ROWS = "rows"


class RecordFolder:
    """A folder of ``NAME.jsonl`` files, one JSON object with its ``index`` a line, all scored with the same settings.

    Several processes each make one, of the same folder; only the first writes.

    Args:
        path: the folder, made if missing.
        settings: what the records depend on (a model's fingerprint, a template, ...), kept in ``settings.json``.
            Numbers, texts and dicts of them. ``rows``, set -> hash of its rows, may come to have further sets.
        overwrite: begin anew where records of other settings, or any records, are there.

    Raises:
        ValueError: there are records of other settings, or processes with other settings than the first; the message
            names the first that differs.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.rank, self.world = here()
        check_alike(self.path, settings)
        on_first(lambda: self._begin(settings, overwrite))

    def _begin(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        written = dict(settings)
        if overwrite:
            for file in self.path.glob("*.jsonl"):
                file.unlink()
        else:
            check_settings(self.path, settings, whole=True)
            if _ROWS in settings:
                written[_ROWS] = {**(read_settings(self.path) or {}).get(_ROWS, {}), **settings[_ROWS]}
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "settings.json", written)

    def read(self, name: str) -> dict[int, dict[str, Any]]:
        """Finished rows by index, also those in parts that processes have left.

        A last line that was cut off by a crash is dropped, from the file as well: nobody may be writing.
        """
        found: dict[int, dict[str, Any]] = {}
        for file in (self._file(name), *self._parts(name)):
            found |= _read_rows(file)
        return found

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds finished rows, of several processes to this one's part; they are in the file when this returns."""
        file = self._file(name) if self.world == 1 else self.path / f"{name}.part{self.rank}.jsonl"
        with file.open("a", encoding="utf-8", newline="\n") as handle:
            handle.write(_lines(rows))

    def close(self, name: str, num_rows: int) -> None:
        """Makes one file of all that was scored, in the order of the rows. Called in the first process alone.

        Raises:
            RuntimeError: fewer than ``num_rows`` rows.
        """
        found, parts = self.read(name), self._parts(name)
        if len(found) < num_rows:
            raise RuntimeError(
                f"{self._file(name)}: {num_rows - len(found)} of {num_rows} rows are missing after all were scored; do "
                "all processes see the same folder, and was it written to meanwhile?"
            )
        if parts or list(found) != sorted(found):
            new = self.path / f"{name}.jsonl.new"
            new.write_text(_lines([found[index] for index in sorted(found)]), encoding="utf-8", newline="\n")
            new.replace(self._file(name))
        for part in parts:
            part.unlink()

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def _parts(self, name: str) -> list[Path]:
        return sorted(self.path.glob(f"{name}.part*.jsonl"))


def _read_rows(file: Path) -> dict[int, dict[str, Any]]:
    if not file.is_file():
        return {}
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as handle:
            handle.truncate(whole)
    # Not splitlines(): generations hold U+2028 and other separators, which JSON does not escape.
    lines = content[:whole].decode("utf-8", errors="replace").split("\n")
    try:
        rows = [json.loads(line) for line in lines if line]
        return {row["index"]: row for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{file}: holds a line that is no record; delete the file to have it scored anew") from None


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings a folder of records was scored with; None where there are none."""
    file = path / "settings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def check_settings(path: Path, wanted: Mapping[str, Any], *, whole: bool = False) -> None:
    """Refuses a folder with records of other settings. ``whole``: ``wanted`` is all of them, not only some."""
    kept = read_settings(path)
    mend = "give another output folder, or --overwrite to score anew"
    if kept is None:
        if any(path.glob("*.jsonl")):
            raise ValueError(f"{path}: holds records of unknown settings (no settings.json); {mend}")
        return
    known = dict(kept if whole else {key: kept.get(key) for key in wanted})
    if _ROWS in known and _ROWS in wanted:  # sets that were not asked for before, or are not asked for now
        known[_ROWS] = {name: known[_ROWS].get(name, rows) for name, rows in wanted[_ROWS].items()}
    for key in sorted(differing(known, wanted), key=_ROWS.__eq__):  # a hash says less than whatever else differs
        raise ValueError(
            f"{path}: holds records with {key} {kept.get(key)!r}, this evaluation has {wanted.get(key)!r}; {mend}"
        )


def check_alike(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses processes that would score something else than the first one does."""
    first, *others = map(json.loads, gather(json.dumps(dict(settings))))
    for rank, theirs in enumerate(others, 1):
        for key in differing(theirs, first):
            raise ValueError(
                f"{path}: process {rank} has {key} {theirs.get(key)!r}, process 0 has {first.get(key)!r}; give all "
                "processes the same command, model and data"
            )


def differing(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not the same, in the order of ``wanted``."""
    as_kept = json.loads(json.dumps(dict(wanted)))
    return [key for key in {**as_kept, **kept} if kept.get(key) != as_kept.get(key)]


@dataclass(frozen=True)
class Unwritten:
    """A record that waits for what the model writes.

    Args:
        prompt: after which that is, as the ``write`` of :func:`score_sets` takes it.
        record: makes the record of the text.
    """

    prompt: Any
    record: Callable[[str], dict[str, Any]]


# Prompts, group by group -> the number of a prompt, counted through all groups, and its text, as they come.
Write = Callable[[Iterator[list[Any]]], Iterable[tuple[int, str]]]
_Found = dict[str, Any] | Unwritten


@dataclass(frozen=True)
class RowSet:
    """Rows of which the same is asked.

    Args:
        name: of the file of their records, ``NAME.jsonl``.
        rows: whatever ``work`` takes.
        work: some rows -> a JSON object for each, or what it waits for, in the same order.
        lengths: of the rows, in tokens: the longest are done first.
        label: of the progress bar; by default the name.
        every: one of so many rows is here; in the records a row has its place among all of them.
    """

    name: str
    rows: Sequence[Any]
    work: Callable[[list[Any]], Sequence[_Found]]
    lengths: Sequence[int]
    label: str | None = None
    every: int = 1

    def index(self, place: int) -> int:
        """Of the row at a place."""
        return place * self.every


def score_sets(
    folder: RecordFolder,
    sets: Sequence[RowSet],
    *,
    batch_size: int,
    write: Write | None = None,
    progress: bool = True,
    stale: Path | None = None,
) -> float | None:
    """Completes the records of some sets: of the rows that ``folder`` lacks ``work`` makes them, kept after each batch.

    Several processes, each of which must call this, take turns at the batches in which something is left, through all
    sets without a stop. They may be more or fewer than those that began.

    Args:
        batch_size: rows per call of ``work``.
        write: makes the texts of records that wait for one.
        progress: show a bar for each set; of several processes, that of the first one's rows.
        stale: a file that says what the whole records came to; removed if some are missing.

    Returns:
        Seconds that it took; None: nothing was left to score.

    Raises:
        RuntimeError: rows are missing after all were scored, or another process has stopped.
        DivergedError: the model gives NaN or Inf; in every process, whichever has met it, so that a program may go on.
    """
    began = time.perf_counter()
    done = on_first(lambda: _done(folder, sets, stale))
    batches = [
        (of, left)
        for of in sets
        for group in by_length(of.lengths, batch_size)
        if (left := [i for i in group if of.index(i) not in done[of.name]])
    ]
    diverged: DivergedError | None = None
    try:
        own = [_Batch(of, group) for of, group in batches[folder.rank :: folder.world]]
        before = {name: len(found) if folder.world == 1 else 0 for name, found in done.items()}
        with closing(_Bars(own, before, folder.world, shown=progress and folder.rank == 0)) as bars:

            def keep(batch: _Batch) -> None:
                folder.append(batch.of.name, batch.records)
                bars.advance(batch)

            _score(own, write, bars.begin, keep)
    except DivergedError as error:
        diverged = error
    told = gather(None if diverged is None else str(diverged))
    if diverged is not None:
        raise diverged
    for text in filter(None, told):
        raise DivergedError(text)
    on_first(lambda: _close(folder, sets))
    return time.perf_counter() - began if batches else None


@dataclass
class _Batch:
    """Rows of a set, by their places, and what is found of them."""

    of: RowSet
    places: list[int]
    found: list[Any] = field(default_factory=list)  # records, and those that are unwritten

    @property
    def waiting(self) -> list[int]:
        """Which of its rows wait for a text."""
        return [row for row, each in enumerate(self.found) if isinstance(each, Unwritten)]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of all its rows, which wait for nothing."""
        return [{"index": self.of.index(i), **row} for i, row in zip(self.places, self.found, strict=True)]


def _score(
    own: Sequence[_Batch], write: Write | None, begin: Callable[[_Batch], Any], keep: Callable[[_Batch], Any]
) -> None:
    """Has the work of batches done. ``begin`` is told of each before it, ``keep`` when all of its records are there."""
    asked: dict[int, tuple[_Batch, int]] = {}  # number of a prompt -> whose it is
    numbers = count()

    def prompts() -> Iterator[list[Any]]:
        for batch in own:
            begin(batch)
            batch.found = list(batch.of.work([batch.of.rows[place] for place in batch.places]))
            if waiting := batch.waiting:
                asked.update((number, (batch, row)) for row, number in zip(waiting, numbers, strict=False))
                yield [batch.found[row].prompt for row in waiting]
            else:
                keep(batch)

    for number, text in (write or _refused)(prompts()):
        batch, row = asked.pop(number)
        batch.found[row] = batch.found[row].record(text)
        if not batch.waiting:
            keep(batch)


def _refused(prompts: Iterator[list[Any]]) -> Iterator[tuple[int, str]]:
    """Stands where nobody writes."""
    for _ in prompts:
        raise ValueError("write: records wait for texts, expected a way to have these written, got None")
    yield from ()


class _Bars:
    """Progress bars of sets, each shown from the first of its batches to the last.

    Args:
        own: the batches of this process.
        initial: rows of each set that are there already.
        world: how many processes there are.
    """

    def __init__(self, own: Sequence[_Batch], initial: Mapping[str, int], world: int, *, shown: bool) -> None:
        self._initial, self._world, self._shown = initial, world, shown
        self._left: Counter[str] = Counter()
        for batch in own:
            self._left[batch.of.name] += len(batch.places)
        self._bars: dict[str, ExitStack] = {}
        self._advance: dict[str, Callable[[int], Any]] = {}

    def close(self) -> None:
        """Ends those that are shown."""
        for bar in self._bars.values():
            bar.close()

    def begin(self, batch: _Batch) -> None:
        """Shows a set's bar, if there is none yet."""
        name = batch.of.name
        if name in self._bars:
            return
        label = batch.of.label or name
        if self._world > 1:
            label += f" (process 1 of {self._world})"
        initial, bar = self._initial[name], ExitStack()
        shown = progress_bar(initial + self._left[name], label, initial=initial, shown=self._shown)
        self._bars[name], self._advance[name] = bar, bar.enter_context(shown)

    def advance(self, batch: _Batch) -> None:
        """Moves it on."""
        name = batch.of.name
        self._advance[name](len(batch.places))
        self._left[name] -= len(batch.places)
        if not self._left[name]:
            self._bars[name].close()


def _done(folder: RecordFolder, sets: Sequence[RowSet], stale: Path | None) -> dict[str, set[int]]:
    """Set -> the indices of its finished rows."""
    done = {of.name: set(folder.read(of.name)) for of in sets}
    if stale is not None and any(len(done[of.name]) < len(of.rows) for of in sets):
        stale.unlink(missing_ok=True)  # else a stopped evaluation would look finished
    return done


def _close(folder: RecordFolder, sets: Sequence[RowSet]) -> None:
    for of in sets:
        folder.close(of.name, len(of.rows))
