"""Tasks for worker processes: what they do is in the job's spec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gru_fast.jobs.queue import Claim
from gru_fast.jobs.worker import Result


@dataclass(frozen=True)
class Scripted:
    """Does as ``claim.spec["do"]`` says, and leaves a line ``NAME PID`` in ``folder/done`` when it begins."""

    folder: Path

    def __call__(self, claim: Claim) -> Result:
        with (self.folder / "done").open("a") as file:
            file.write(f"{claim.name} {os.getpid()}\n")
        print(f"this is {claim.name}")
        subprocess.run([sys.executable, "-c", "print('from a process below')"], check=True)
        action = claim.spec.get("do", "")
        if action == "fail":
            raise ValueError("this one\ncannot be done")
        if action == "exit":
            sys.exit(2)
        if action == "prune":
            from optuna.exceptions import TrialPruned

            raise TrialPruned("out of reach")
        if action == "stop":
            raise KeyboardInterrupt
        if action == "die" or (action == "die once" and not self._was_here(claim)):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep({"nap": 3, "wait": 600}.get(action, 0))
        return Result(1.5, {"job": claim.name})

    def _was_here(self, claim: Claim) -> bool:
        return [line.split()[0] for line in (self.folder / "done").read_text().splitlines()].count(claim.name) > 1


@dataclass(frozen=True)
class Unloadable:
    """A task that no process can read."""

    def __reduce__(self) -> tuple[object, ...]:
        return _fail, ()

    def __call__(self, claim: Claim) -> Result:
        raise AssertionError("must not be called")


def _fail() -> None:
    raise RuntimeError("cannot be read")
