"""One job in a worker process: its log, its outcome, its record."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gru_fast.runs.processes import logged_to
from gru_fast.runs.records import DONE, FAILED, PRUNED, Job, Records, Status

_PATIENCE_SECONDS = 120.0  # until one that was killed, and what it had launched, has let go of a job


class Pruned(Exception):  # noqa: N818 no error
    """A task gives its job up, for a reason that is no failure. ``facts``: what is worth keeping, JSON."""

    def __init__(self, reason: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.facts = dict(facts or {})


# Does a job; returns what is worth keeping of it, JSON. Pruned: it was given up. Any other exception: it has failed.
Task = Callable[[Job], Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where and how a worker does jobs, as its driver has it: Ray's workers start elsewhere, with a variable more.

    Args:
        records: folder of the study or sweep.
        cwd: working directory.
        threads: of torch.
        variables: of the driver's environment, those that count.
    """

    records: Path
    cwd: str
    threads: int
    variables: Mapping[str, str] = field(default_factory=dict)


def do(task: Task, job: Job, place: Place) -> bool:
    """Does a job and keeps its outcome, unless it is over already. False: another process works on it all the while."""
    _settle_in(place)
    records = Records(place.records)
    with contextlib.ExitStack() as stack:
        # Two processes must not write into one run folder: one whose driver was killed may take a moment to end.
        try:
            stack.enter_context(logged_to(records.log_of(job.name), _PATIENCE_SECONDS))
        except TimeoutError:
            return False
        if not records.is_over(job.name):
            records.end(job, _outcome(task, job))
    return True


def _outcome(task: Task, job: Job) -> Status:
    began, status = time.monotonic(), Status(job.name, job.spec)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    sys.stdout.write(f"--- {job.name}, {now}, process {os.getpid()} on {socket.gethostname()}\n")
    try:
        status = replace(status, state=DONE, facts=dict(task(job)))
    except Pruned as error:
        status = replace(status, state=PRUNED, reason=str(error), facts=error.facts)
    except (Exception, SystemExit) as error:  # noqa: BLE001 whatever it is, the others go on
        traceback.print_exc()
        status = replace(status, state=FAILED, reason=f"{type(error).__name__}: {in_line(error)}")
    return replace(status, seconds=round(time.monotonic() - began, 3))


def in_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or "no further word"


def _settle_in(place: Place) -> None:
    # Ray's own would raise SystemExit in the task, as if that had failed: a worker that is asked to end ends.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(place.cwd)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, by the number of cores that a task has asked for
    os.environ |= place.variables
    import torch

    torch.set_num_threads(place.threads)  # it has read that variable already
