"""Worker processes: jobs in parallel, workers that die, stopping, what is said meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from job_tasks import Scripted, Unloadable

from gru_fast.jobs import pool
from gru_fast.jobs.progress import Progress, failures
from gru_fast.jobs.queue import Job
from gru_fast.jobs.status import DONE, FAILED, RUNNING, WAITING, Status


def address_of(folder: Path, **jobs: str) -> pool.Address:
    """Of a queue of jobs by name, each with what it does."""
    found = pool.Address(f"sqlite:///{folder}/jobs.db", "test", ("all",))
    found.open().make({"all": {}}, {"all": [Job(name, {"do": action}) for name, action in jobs.items()]})
    return found


def begun(folder: Path) -> list[tuple[str, str]]:
    """(job, process) of every beginning."""
    file = folder / "done"
    return [(line.split()[0], line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


def test_failures_and_deaths_do_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = address_of(tmp_path, a="", b="fail", c="die once", d="")
    workers = pool.Workers(Scripted(tmp_path), tmp_path / "logs", count=2)
    with Progress("test", lambda job: f"value {job.value}") as progress:
        status = pool.run(address, workers, progress.show)
    assert {name: job.state for name, job in status.items()} == {"a": DONE, "b": FAILED, "c": DONE, "d": DONE}
    assert Counter(name for name, _ in begun(tmp_path)) == {"a": 1, "b": 1, "c": 2, "d": 1}
    out = capsys.readouterr().out
    assert out.startswith("test: 4 jobs\n")
    assert "a  value 1.5  " in out
    log = tmp_path / "logs" / "b.log"
    assert "b  failed: ValueError: this one cannot be done" in out
    assert f"({log})" in out
    assert failures(status).splitlines() == [
        "1 of 4 jobs not done; --retry-failed does them again:",
        f"  b: ValueError: this one cannot be done; see {log}",
    ]


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_stopping_puts_jobs_back_and_leaves_no_process(tmp_path: Path, how: str) -> None:
    address = address_of(tmp_path, a="wait", b="wait", c="wait")
    workers = pool.Workers(Scripted(tmp_path), tmp_path / "logs", count=2)

    def stop_when_two_run(status: dict[str, Status]) -> None:
        if len(begun(tmp_path)) < 2:
            return
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # the signal ends it

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        pool.run(address, workers, stop_when_two_run)
    assert signal.getsignal(signal.SIGTERM) is before
    assert {job.state for job in address.open().status().values()} == {WAITING}
    for _, process in begun(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_workers_that_cannot_begin(tmp_path: Path) -> None:
    address = address_of(tmp_path, a="")
    with pytest.raises(RuntimeError, match=r"workers end one after another \(the last with exit code 1\)"):
        pool.run(address, pool.Workers(Unloadable(), tmp_path / "logs"), lambda status: None)


def test_a_storage_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_of(tmp_path, a="")
    look, seen = pool._look, []

    def at_times(queue: Any) -> dict[str, Status]:
        seen.append(len(seen))
        if len(seen) in {1, 3}:
            raise OSError("nobody there")
        return look(queue)

    monkeypatch.setattr(pool, "_look", at_times)
    status = pool.run(address, pool.Workers(Scripted(tmp_path), tmp_path / "logs"), lambda status: None)
    assert status["a"].state == DONE


def test_two_pools_share_the_jobs(tmp_path: Path) -> None:
    names = [f"job-{index}" for index in range(6)]
    address = address_of(tmp_path, **dict.fromkeys(names, ""))
    found: list[Any] = []

    def run() -> None:
        found.append(pool.run(address, pool.Workers(Scripted(tmp_path), tmp_path / "logs"), lambda status: None))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(name for name, _ in begun(tmp_path)) == Counter(names)
    assert all({job.state for job in status.values()} == {DONE} for status in found)


def test_worker_outlives_its_parent_by_one_job_only(tmp_path: Path) -> None:
    address = address_of(tmp_path, a="nap", b="nap", c="nap")
    code = f"""
import time
from pathlib import Path
from gru_fast.jobs import pool
from job_tasks import Scripted

def show(status):
    if any(job.state == "running" for job in status.values()):
        print("running", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    pool.run(pool.Address({address.storage!r}, "test", ("all",)),
             pool.Workers(Scripted(Path({str(tmp_path)!r})), Path({str(tmp_path / "logs")!r})), show)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"running\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(job.state == RUNNING for job in address.open().status().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)
    assert {name: job.state for name, job in address.open().status().items()} == {"a": DONE, "b": WAITING, "c": WAITING}
