"""A job, and how it stands: by its record, a file that is there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gru_fast.runs.files import read_json, write_json

WAITING, RUNNING, DONE, FAILED, PRUNED, BLOCKED = "waiting", "running", "done", "failed", "pruned", "blocked"
RECORDS, LOGS = "jobs", "logs"  # folders of a study or sweep
_OVER = {DONE, FAILED, PRUNED}
_KEPT = ("state", "facts", "reason", "seconds")  # of a status, in a record


@dataclass(frozen=True)
class Job:
    """Something to do.

    Args:
        name: unique in its folder; names record and log.
        spec: what the task needs to know, as JSON.
        needs: names of jobs that must be done before.
        drawn: of ``spec``, what is known only when the job begins: its record keeps it from then on.
    """

    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    drawn: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How a job stands.

    Args:
        name, spec, needs: the job's; what was drawn is in ``spec``.
        state: waiting, running, done, failed, pruned, or blocked: what it needs has failed.
        facts: what its task has noted, JSON.
        reason: why it has failed or was pruned.
        log: the file that says more.
        seconds: how long it took, of a job that has ended.
    """

    name: str
    spec: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    state: str = WAITING
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    log: str = ""
    seconds: float | None = None

    @property
    def is_pending(self) -> bool:
        """Still to be done, or being done."""
        return self.state in {WAITING, RUNNING}


class Records:
    """The records of the jobs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log_of(self, name: str) -> Path:
        """Where a job's commands write what they say."""
        return self.folder / LOGS / f"{name}.log"

    def read(self, name: str) -> dict[str, Any] | None:
        """A job's record; None where it has not begun."""
        path = self._path(name)
        return read_json(path) if path.is_file() else None

    def is_over(self, name: str) -> bool:
        """Whether a job has ended, one way or the other."""
        record = self.read(name)
        return record is not None and record["state"] in _OVER

    def begin(self, job: Job) -> None:
        """Notes what a job was begun with, so that it goes on with the same."""
        write_json(self._path(job.name), {"state": WAITING, "spec": job.spec, "drawn": job.drawn})

    def end(self, job: Job, status: Status) -> None:
        """Notes what has come of a job. The last thing that is done for it."""
        kept = {name: getattr(status, name) for name in _KEPT}
        write_json(self._path(job.name), {**kept, "spec": job.spec, "drawn": job.drawn})

    def forget(self, names: Iterable[str]) -> None:
        """These jobs are to be done again, with what was drawn for them: their run folders hold a part of that run."""
        for name in names:
            record = self.read(name)
            if record is not None and record["drawn"]:
                self.begin(Job(name, record["spec"], (), record["drawn"]))
            else:
                self._path(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The jobs that have a record."""
        return sorted(path.stem for path in (self.folder / RECORDS).glob("[!.]*.json"))

    def status(self, jobs: Iterable[Job], running: Iterable[str] = ()) -> dict[str, Status]:
        """How jobs stand, by name, in their order. ``running``: those that somebody works on."""
        active = set(running)
        found = {job.name: self._status(job, job.name in active) for job in jobs}
        return {name: _blocked(status, found) for name, status in found.items()}

    def _status(self, job: Job, is_running: bool) -> Status:
        record = self.read(job.name)
        if record is None or record["state"] not in _OVER:
            drawn = {} if record is None else record["drawn"]
            state = RUNNING if is_running else WAITING
            return Status(job.name, {**job.spec, **drawn}, job.needs, state)
        known = {name: record[name] for name in _KEPT}
        log = self.log_of(job.name)
        known["log"] = str(log) if log.is_file() else ""
        return Status(job.name, {**record["spec"], **record["drawn"]}, job.needs, **known)

    def _path(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"


def can_start(status: Status, found: Mapping[str, Status]) -> bool:
    """Whether a job waits for nothing but somebody who does it."""
    return status.state == WAITING and all(found[need].state == DONE for need in status.needs)


def _blocked(status: Status, found: Mapping[str, Status]) -> Status:
    """The status of a job that waits for one which will not come."""
    missing = [need for need in status.needs if _is_out(found[need], found)]
    if status.state != WAITING or not missing:
        return status
    return replace(status, state=BLOCKED, reason=f"needs {missing[0]}, which is not done")


def _is_out(status: Status, found: Mapping[str, Status]) -> bool:
    if status.state == WAITING:
        return any(_is_out(found[need], found) for need in status.needs)
    return status.state in {FAILED, PRUNED}
