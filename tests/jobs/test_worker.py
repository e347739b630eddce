"""One worker: outcomes of jobs, their logs, going on and stopping."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_tasks import Scripted
from optuna.trial import TrialState

from gru_fast.jobs import worker
from gru_fast.jobs.liveness import Owner
from gru_fast.jobs.queue import Claim, Job, Queue
from gru_fast.jobs.status import DONE, FAILED, PRUNED, WAITING
from gru_fast.jobs.storage import open_storage
from gru_fast.jobs.worker import Result, _Beat, problems_of_patience, work


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Queue]:
    """A queue of jobs by name, each with what it does."""

    def filled(**jobs: str) -> Queue:
        queue = Queue(open_storage(f"sqlite:///{tmp_path}/jobs.db"), "test", ("all",))
        queue.make({"all": {}}, {"all": [Job(name, {"do": action}) for name, action in jobs.items()]})
        return queue

    return filled


def states(queue: Queue) -> dict[str, str]:
    return {name: status.state for name, status in queue.status().items()}


def test_jobs_one_after_another(fill: Callable[..., Queue], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    queue = fill(a="", b="prune", c="")
    assert work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": DONE, "b": PRUNED, "c": DONE}
    status = queue.status()
    assert (status["a"].value, status["a"].facts, status["b"].reason) == (1.5, {"job": "a"}, "out of reach")
    for name in "abc":
        assert status[name].log == str(tmp_path / "logs" / f"{name}.log")
        log = Path(status[name].log).read_text()
        assert log.startswith(f"--- {name}, ")
        assert f"this is {name}\n" in log
        assert "from a process below" in log  # not only what Python's sys.stdout gets
    print("back")
    assert capfd.readouterr().out == "back\n"


def test_a_storage_that_is_away_for_a_while_is_waited_for(
    fill: Callable[..., Queue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.01)
    queue = fill(a="", b="")
    take_over, asked = queue.take_over, []

    def at_times() -> list[str]:
        asked.append(len(asked))
        if len(asked) in {1, 2, 4}:
            raise OSError("nobody there")
        return take_over()

    monkeypatch.setattr(queue, "take_over", at_times)
    assert work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": DONE, "b": DONE}
    assert len(asked) == 6


def test_a_job_that_was_taken_over_in_its_last_moment(
    fill: Callable[..., Queue], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    queue = fill(a="", b="")

    def overtaken(claim: Claim) -> Result:
        claim.study.tell(claim.trial.number, state=TrialState.FAIL)  # as another process does
        return Result()

    assert not work(queue, overtaken, tmp_path / "logs")
    assert "a was taken over by another process in its last moment; this one ends" in capfd.readouterr().out
    assert states(queue)["b"] == WAITING


def test_worker_ends_after_a_failure(fill: Callable[..., Queue], tmp_path: Path) -> None:
    queue = fill(a="fail", b="exit", c="")
    assert not work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": FAILED, "b": WAITING, "c": WAITING}
    assert queue.status()["a"].reason == "ValueError: this one cannot be done"
    assert "Traceback" in (tmp_path / "logs" / "a.log").read_text()
    assert not work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert queue.status()["b"].reason == "SystemExit: 2"
    assert work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": FAILED, "b": FAILED, "c": DONE}


def test_stopped_worker_puts_its_job_back(fill: Callable[..., Queue], tmp_path: Path) -> None:
    queue = fill(a="stop")
    with pytest.raises(KeyboardInterrupt):
        work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": WAITING}


def test_worker_asks_between_jobs_whether_to_go_on(fill: Callable[..., Queue], tmp_path: Path) -> None:
    queue, answers = fill(a="", b=""), iter([True, False])
    assert work(queue, Scripted(tmp_path), tmp_path / "logs", goes_on=lambda: next(answers))
    assert states(queue) == {"a": DONE, "b": WAITING}


def test_worker_takes_over_the_job_of_a_dead_one(fill: Callable[..., Queue], tmp_path: Path) -> None:
    queue = fill(a="")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert queue.claim(Owner(Owner.of_this_process().host, process.pid, 0.0)) is not None
    assert work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert states(queue) == {"a": DONE}


def test_worker_whose_job_was_taken_over_ends_at_once(fill: Callable[..., Queue], tmp_path: Path) -> None:
    """It must not go on writing beside the one that has the job now."""
    fill(a="")
    code = f"""
import time
from pathlib import Path
from gru_fast.jobs.queue import Queue
from gru_fast.jobs.storage import open_storage
from gru_fast.jobs.worker import work

queue = Queue(open_storage("sqlite:///{tmp_path}/jobs.db"), "test", ("all",))

def task(claim):
    queue._fail("all", queue._trials("all")[0])  # as somebody does who takes it for dead
    time.sleep(60)

work(queue, task, Path("{tmp_path}/logs"), beat=0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 75
    assert "a was taken over by another process; this one ends" in (tmp_path / "logs" / "a.log").read_text()


@pytest.mark.parametrize("how", ["raise Away('no route to host')", "time.sleep(60)"], ids=["fails", "hangs"])
def test_worker_that_cannot_give_a_sign_of_life_ends(fill: Callable[..., Queue], tmp_path: Path, how: str) -> None:
    """By then another machine may have its job, which the storage cannot tell it."""
    fill(a="")
    code = f"""
import time
from pathlib import Path
from gru_fast.jobs.queue import Claim, Queue
from gru_fast.jobs.storage import open_storage
from gru_fast.jobs.worker import work

class Away(Exception):
    "As a database's driver may have it."

def beat(claim):
    {how}

def task(claim):
    Claim.beat = beat
    time.sleep(60)

queue = Queue(open_storage("sqlite:///{tmp_path}/jobs.db"), "test", ("all",), patience=1.0)
work(queue, task, Path("{tmp_path}/logs"), beat=0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=50)
    assert done.returncode == 75
    log = (tmp_path / "logs" / "a.log").read_text()
    assert re.search(r"a has given no sign of life for \d+ s and may be another process's; this one ends", log)
    assert ("no sign of life could be given: Away: no route to host" in log) == ("raise" in how)


class FakeClaim:
    """A job whose storage can be away."""

    def __init__(self, patience: float) -> None:
        self.name = "a"
        self.queue = SimpleNamespace(patience=patience)
        self.is_away = False

    def beat(self) -> bool:
        if self.is_away:
            raise OSError("no route to host")
        return True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, FakeClaim, list[float], list[str]]:
    """The beat of a claim with a patience of 60 s, its time, and what it has ended with."""
    now, ends = [0.0], []
    claim: Any = FakeClaim(patience=60.0)
    beat = _Beat(claim, 0.02, lambda: now[0])
    monkeypatch.setattr(beat, "_end", ends.append)
    return beat, claim, now, ends


def test_a_storage_that_comes_back_in_time(watched: tuple[Any, FakeClaim, list[float], list[str]]) -> None:
    beat, claim, now, ends = watched
    claim.is_away = True
    for now[0] in (20.0, 40.0, 59.9):
        beat._give()
        beat._look()
    assert ends == []
    claim.is_away = False
    beat._give()
    claim.is_away = True
    for now[0] in (80.0, 119.8):
        beat._give()
        beat._look()
    assert ends == []
    now[0] = 119.9
    beat._look()
    assert ends == ["has given no sign of life for 60 s and may be another process's"]


def test_a_process_that_was_stopped_first_gives_its_sign(
    watched: tuple[Any, FakeClaim, list[float], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, _, now, ends = watched
    monkeypatch.setattr(beat._over, "wait", lambda seconds: beat._give())
    now[0] = 3600.0
    beat._look()
    assert ends == []


def test_least_patience() -> None:
    assert problems_of_patience(40.0) == []
    assert problems_of_patience(float("inf")) == []
    for seconds in (39.9, 0.0, -1.0, float("nan")):
        (said,) = problems_of_patience(seconds)
        assert said.startswith("patience: expected at least 40 seconds, twice the 20 for which a lock")
        assert said.endswith(f", got {seconds}")


def test_signs_of_life_are_given(fill: Callable[..., Queue], tmp_path: Path) -> None:
    import time

    queue, seen = fill(a=""), []

    def task(claim: object) -> Result:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(set(seen)) < 3:
            seen.append(queue._trials("all")[0].user_attrs.get("beat"))
            time.sleep(0.05)
        return Result()

    assert work(queue, task, tmp_path / "logs", beat=0.1)
    assert len(set(seen)) >= 3
    assert queue.status()["a"].state == DONE


def test_descriptors_are_given_back(fill: Callable[..., Queue], tmp_path: Path) -> None:
    queue = fill(**{f"job-{index}": "" for index in range(5)})
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert work(queue, Scripted(tmp_path), tmp_path / "logs")
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208 the storage's connections
