"""One process that claims jobs and does them one after another, each with a log of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from gru_fast.jobs.liveness import Owner
from gru_fast.jobs.queue import Claim, Queue

BEAT_SECONDS = 5.0  # between two signs of life
_LOOK_SECONDS = 1.0  # between two looks for a job, where there is none to be had
EXIT_TAKEN_OVER = 75  # sysexits.h: a temporary failure


@dataclass(frozen=True)
class Result:
    """What has come of a job: a finite ``value``, which a sampler maximises, and whatever else is worth keeping."""

    value: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON


# Does a job. TrialPruned of Optuna: it was given up. Any other exception: it has failed, and the rest goes on.
Task = Callable[[Claim], Result]


def work(
    queue: Queue, task: Task, logs: Path, *, goes_on: Callable[[], bool] = lambda: True, beat: float = BEAT_SECONDS
) -> bool:
    """Claims jobs and does them until none is left; waits where others are working on what is left.

    Args:
        task: called with each claim.
        logs: folder of the logs, ``NAME.log``.
        goes_on: asked between two jobs.
        beat: seconds between two signs of life.

    Returns:
        Whether to go on is of use: False after a job that failed. The process may be broken then (out of memory, a CUDA
        error stays), and a new one should do the rest.

    Raises:
        KeyboardInterrupt: after the job in hand was put back.
    """
    owner = Owner.of_this_process()
    while goes_on():
        queue.take_over()
        claim = queue.claim(owner)
        if claim is not None:
            if not _do(claim, task, logs / f"{claim.name}.log", beat):
                return False
        elif not any(status.is_pending for status in queue.status().values()):
            break
        else:
            time.sleep(_LOOK_SECONDS)
    return True


def _do(claim: Claim, task: Task, log: Path, beat: float) -> bool:
    """One job; whether it has not failed."""
    from optuna.exceptions import TrialPruned

    claim.log_to(str(log))
    outcome: Result | BaseException
    with _logged(log), _Beat(claim, beat):
        _say(f"--- {claim.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {Owner.of_this_process()}")
        try:
            outcome = task(claim)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 whatever it is, the others go on
            if not isinstance(error, (TrialPruned, KeyboardInterrupt)):
                traceback.print_exc()
            outcome = error.with_traceback(None)  # its frames hold models
    if isinstance(outcome, Result):
        claim.finish(outcome.value, outcome.facts)
    elif isinstance(outcome, TrialPruned):
        claim.prune(str(outcome))
    elif isinstance(outcome, KeyboardInterrupt):
        claim.release()
        raise outcome
    else:
        claim.fail(f"{type(outcome).__name__}: {' '.join(str(outcome).split()) or 'no further word'}")
        return False
    return True


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What this process writes on stdout and stderr goes to ``path``, libraries in C and C++ included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            file.flush()
            for descriptor, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Beat(threading.Thread):
    """Gives signs of life for a claim while it lasts, and ends the process if the job is no longer its own.

    A process that was stopped or cut off for long may wake up when somebody else does its job: two of them must not
    write into one folder.
    """

    def __init__(self, claim: Claim, seconds: float) -> None:
        super().__init__(name=f"beat of {claim.name}", daemon=True)
        self._claim = claim
        self._seconds = seconds
        self._over = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(self._seconds):
            if not self._is_ours():
                _say(f"{self._claim.name} was taken over by another process; this one ends")
                os._exit(EXIT_TAKEN_OVER)

    def _is_ours(self) -> bool:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._claim.beat()
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            _say(f"no sign of life could be given: {error}")  # the storage is away: perhaps it comes back
            return True
