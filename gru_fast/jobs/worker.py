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
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from gru_fast.jobs.command import stop_launched
from gru_fast.jobs.liveness import Owner
from gru_fast.jobs.queue import Claim, Queue
from gru_fast.jobs.storage import GRACE_SECONDS, Outage

BEAT_SECONDS = 5.0  # between two signs of life
_LEAST_PATIENCE = 2.0 * GRACE_SECONDS  # while a lock is waited for, no living process can give one
_LOOK_SECONDS = 1.0  # between two looks for a job, where there is none to be had
EXIT_TAKEN_OVER = 75  # sysexits.h: a temporary failure


@dataclass(frozen=True)
class Result:
    """What has come of a job: a finite ``value``, which a sampler maximises, and whatever else is worth keeping."""

    value: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON


# Does a job. TrialPruned of Optuna: it was given up. Any other exception: it has failed, and the rest goes on.
Task = Callable[[Claim], Result]


def problems_of_patience(seconds: float) -> list[str]:
    """What is wrong with a queue's patience where workers give a sign of life every ``BEAT_SECONDS``; one, or none."""
    if seconds >= _LEAST_PATIENCE:
        return []
    why = f"twice the {GRACE_SECONDS} for which a lock that a killed process has left holds all others up"
    return [f"patience: expected at least {_LEAST_PATIENCE:g} seconds, {why}, got {seconds}"]


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
    owner, outage = Owner.of_this_process(), Outage(queue.patience)
    while goes_on():
        claim, is_left = outage.bear(partial(_next, queue, owner)) or (None, True)
        if claim is not None:
            if not _do(claim, task, logs / f"{claim.name}.log", beat):
                return False
        elif is_left:
            time.sleep(_LOOK_SECONDS)
        else:
            break
    return True


def _next(queue: Queue, owner: Owner) -> tuple[Claim | None, bool]:
    """A job to do; whether there is anything left to wait for."""
    queue.take_over()
    claim = queue.claim(owner)
    return claim, claim is not None or any(status.is_pending for status in queue.status().values())


def _do(claim: Claim, task: Task, log: Path, beat: float) -> bool:
    """One job; whether it has not failed."""
    from optuna.exceptions import TrialPruned

    outage = Outage(claim.queue.patience)
    outage.bear(partial(claim.log_to, str(log)))
    outcome: Result | BaseException
    with _logged(log), _Beat(claim, beat):
        _say(f"--- {claim.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {Owner.of_this_process()}")
        try:
            outcome = task(claim)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 whatever it is, the others go on
            if not isinstance(error, (TrialPruned, KeyboardInterrupt)):
                traceback.print_exc()
            outcome = error.with_traceback(None)  # its frames hold models
    while (is_fine := outage.bear(partial(_tell, claim, outcome))) is None:
        time.sleep(_LOOK_SECONDS)
    return is_fine


def _tell(claim: Claim, outcome: Result | BaseException) -> bool:
    """Keeps what has come of a job; whether this process may go on."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        return _kept(claim, outcome)
    except UpdateFinishedTrialError:
        _say(f"{claim.name} was taken over by another process in its last moment; this one ends")
        return False


def _kept(claim: Claim, outcome: Result | BaseException) -> bool:
    """Keeps what has come of a job; whether it has not failed."""
    from optuna.exceptions import TrialPruned

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


class _Beat:
    """Gives signs of life for a claim while it lasts, and ends the process when the job is no longer its own.

    It is not when somebody else has taken it over, as this process learns that was stopped for long. And it may not be
    when no sign of life could be given for as long as others wait for one: the storage, perhaps, is out of reach from
    here alone. Two processes must not write into one folder.

    Args:
        claim: the job.
        seconds: between two signs of life.
        clock: seconds that go by.
    """

    def __init__(self, claim: Claim, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._claim = claim
        self._seconds = seconds
        self._clock = clock
        self._given = clock()  # when the last sign was, of those that have arrived
        self._over = threading.Event()
        # Two: giving a sign may take as long as the network does to say that nobody is there.
        self._threads = [
            threading.Thread(target=self._repeat, args=each, name=f"beat of {claim.name}", daemon=True)
            for each in ((self._give, seconds), (self._look, seconds / 2))
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, step: Callable[[], None], seconds: float) -> None:
        while not self._over.wait(seconds):
            step()

    def _give(self) -> None:
        now = self._clock()
        try:
            is_ours = self._claim.beat()
        except Exception as error:  # noqa: BLE001 a database's driver has errors of its own; whichever, none was given
            _say(f"no sign of life could be given: {type(error).__name__}: {error}")  # perhaps it comes back
            return
        self._given = now
        if not is_ours:
            self._end("was taken over by another process")

    def _look(self) -> None:
        # A process that was stopped meanwhile gives its sign first, as soon as it goes on.
        if self._is_overdue() and not self._over.wait(self._seconds / 2) and self._is_overdue():
            self._end(f"has given no sign of life for {self._clock() - self._given:.0f} s and may be another process's")

    def _is_overdue(self) -> bool:
        """Whether others would have lost patience by the look after the next."""
        return self._clock() - self._given > self._claim.queue.patience - self._seconds

    def _end(self, why: str) -> None:
        _say(f"{self._claim.name} {why}; this one ends")
        stop_launched()
        os._exit(EXIT_TAKEN_OVER)
