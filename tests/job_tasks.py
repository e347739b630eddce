"""Tasks for worker processes: what they do is in the job's spec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gru_fast.jobs.command import launched
from gru_fast.jobs.doing import Pruned
from gru_fast.runs.records import Job

_WAITS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


@dataclass(frozen=True)
class Scripted:
    """Does as ``job.spec["do"]`` says, and leaves a line ``NAME PID`` in ``folder/done`` when it begins."""

    folder: Path

    def __call__(self, job: Job) -> dict[str, Any]:
        with (self.folder / "done").open("a") as file:
            file.write(f"{job.name} {os.getpid()}\n")
        print(f"this is {job.name}", flush=True)
        subprocess.run([sys.executable, "-c", "print('from a process below')"], check=True)
        action = job.spec.get("do", "")
        if action == "fail":
            raise ValueError("this one\ncannot be done")
        if action == "exit":
            sys.exit(2)
        if action == "prune":
            raise Pruned("out of reach", {"epoch": 1})
        if action == "launch":
            launched([sys.executable, "-c", _WAITS, str(self.folder / "launched")])
        if action == "die" or (action == "die once" and not self._was_here(job)):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "wait once" and not self._was_here(job):
            time.sleep(600)
        import torch

        return {"job": job.name, "pid": os.getpid(), "cwd": str(Path.cwd()), "threads": torch.get_num_threads()}

    def _was_here(self, job: Job) -> bool:
        return [line.split()[0] for line in (self.folder / "done").read_text().splitlines()].count(job.name) > 1


def outcome(job: Any) -> str:
    """For the line of a job that is done."""
    return f"by {job.facts['job']}"


def main(folder: Path, *specs: str) -> None:
    """A driver of its own: jobs "a", "b", ... that do as ``specs`` say, two at a time."""
    from gru_fast.jobs import driver

    jobs = [Job("abcdefgh"[at], {"do": text}) for at, text in enumerate(specs)]
    with driver.alone(folder / "study"):
        driver.run(folder / "study", jobs, Scripted(folder), driver.Cluster(workers=2), outcome)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    main(Path(sys.argv[1]), *sys.argv[2:])
