"""What is said while jobs are done: a line for each that ends, and on a terminal a bar over all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from gru_fast.runs.records import BLOCKED, DONE, FAILED, RUNNING, Status

_WIDTH = 60  # characters for the names of what is running


class Progress:
    """Shows how jobs stand.

    Args:
        title: of the whole.
        outcome: what a job that is done has come to, in a few words.
    """

    def __init__(self, title: str, outcome: Callable[[Status], str]) -> None:
        self._title = title
        self._outcome = outcome
        self._said: set[str] | None = None
        self._bar: Any = None

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def show(self, status: Mapping[str, Status]) -> None:
        """To be called again and again; says what is new."""
        over = {name for name, job in status.items() if not job.is_pending}
        if self._said is None:
            self._said = over
            self._begin(len(status), len(over))
        for name, job in status.items():
            if name in over - self._said:
                self._bar.clear()
                _say(f"[{len(over)}/{len(status)}] {self._line(job)}")
        self._bar.n = len(over)
        running = ", ".join(name for name, job in status.items() if job.state == RUNNING)
        self._bar.set_postfix_str(running if len(running) <= _WIDTH else running[: _WIDTH - 3] + "...")
        self._said = self._said | over

    def _begin(self, total: int, over: int) -> None:
        from tqdm import tqdm

        _say(f"{self._title}: {total} jobs" + (f", {over} of them over" if over else ""))
        self._bar = tqdm(total=total, initial=over, unit="job", leave=False, disable=not sys.stderr.isatty())

    def _line(self, job: Status) -> str:
        took = f"  {job.seconds:.0f} s" if job.seconds is not None else ""
        if job.state == DONE:
            return f"{job.name}  {self._outcome(job)}{took}"
        return f"{job.name}  {job.state}: {job.reason}{took}{f'  ({job.log})' if job.state == FAILED else ''}"


def failures(status: Mapping[str, Status]) -> str:
    """The jobs that were not done and why, each with its log; empty if there is none."""
    failed = [job for job in status.values() if job.state in {FAILED, BLOCKED}]
    if not failed:
        return ""
    lines = [f"  {job.name}: {job.reason}{f'; see {job.log}' if job.log else ''}" for job in failed]
    return "\n".join([f"{len(failed)} of {len(status)} jobs not done; --retry-failed does them again:", *lines])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
