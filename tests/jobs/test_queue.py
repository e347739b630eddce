"""The queue: a job is claimed once, a dead worker's job is taken over, outcomes stay, other settings are refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gru_fast.jobs.liveness import Owner, Silence
from gru_fast.jobs.queue import Job, Queue, differences
from gru_fast.jobs.status import BLOCKED, DONE, FAILED, PRUNED, RUNNING, WAITING
from gru_fast.jobs.storage import check_folder, open_storage

HERE = Owner.of_this_process()
Open = Callable[..., Queue]


@pytest.fixture(params=["sqlite:///{}/jobs.db", "{}/jobs.journal"], ids=["sqlite", "journal"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


@pytest.fixture
def open_queue(address: str) -> Open:
    """Opens the queue as a process of its own would."""

    def opened(**options: Any) -> Queue:
        return Queue(open_storage(address), "test", ("first", "second"), **options)

    return opened


def filled(queue: Queue, **jobs: tuple[str, ...]) -> Queue:
    """A queue of jobs by name, each with what it needs."""
    settings = {"first": {"rate": 0.1, "model": {"name": "a"}}, "second": {}}
    queue.make(settings, {"first": [Job(name, {"n": name}, needs) for name, needs in jobs.items()]})
    return queue


def gone() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return Owner(HERE.host, process.pid, 0.0)


def states(queue: Queue) -> dict[str, str]:
    return {name: status.state for name, status in queue.status().items()}


# ---- claiming --------------------------------------------------------------------------------------------------------


def test_a_job_from_beginning_to_end(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    claim = queue.claim(HERE)
    assert claim is not None
    assert (claim.name, claim.spec) == ("a", {"n": "a"})
    assert queue.claim(HERE) is None
    status = open_queue().status()["a"]
    assert (status.state, status.owner, status.is_pending) == (RUNNING, HERE, True)
    claim.log_to("a.log")
    claim.finish(-3.5, {"MU": 0.5})
    status = open_queue().status()["a"]
    assert (status.state, status.value, status.facts, status.log) == (DONE, -3.5, {"MU": 0.5}, "a.log")
    assert not status.is_pending
    assert status.seconds is not None
    assert open_queue().claim(HERE) is None


def test_jobs_are_claimed_in_order_and_after_what_they_need(open_queue: Open) -> None:
    queue = filled(open_queue(), late=("early",), early=(), free=())
    first = queue.claim(HERE)
    second = queue.claim(HERE)
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("early", "free")
    assert queue.claim(HERE) is None
    first.finish(0.0, {})
    third = queue.claim(HERE)
    assert third is not None
    assert third.name == "late"


def test_every_job_is_claimed_once_by_many(open_queue: Open) -> None:
    names = [f"job-{index}" for index in range(12)]
    filled(open_queue(), **dict.fromkeys(names, ()))
    claimed: list[str] = []

    def claim_all() -> None:
        queue = open_queue()
        while (claim := queue.claim(HERE)) is not None:
            claimed.append(claim.name)
            claim.finish(0.0, {})

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(claimed) == Counter(names)


def test_jobs_that_two_have_added_are_done_once(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    queue._add("first", {"job": "a", "spec": {"n": "second"}, "needs": []}, {}, {})  # by a race
    claim = queue.claim(HERE)
    assert claim is not None
    assert claim.spec == {"n": "a"}
    assert queue.claim(HERE) is None
    claim.finish(1.0, {})
    assert states(queue) == {"a": DONE}


def test_adding_again_adds_what_is_missing(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    claim = queue.claim(HERE)
    assert claim is not None
    claim.finish(1.0, {})
    assert states(filled(open_queue(), a=(), b=())) == {"a": DONE, "b": WAITING}


class Killed(BaseException):
    """No exception that the code itself knows."""


@pytest.mark.parametrize("before", range(8))
def test_making_goes_on_wherever_it_was_killed(open_queue: Open, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"first": {"rate": 0.1}, "second": {"rate": 0.2}}
    jobs = {"first": [Job("a"), Job("b")], "second": [Job("c", needs=("a",)), Job("d")]}
    queue, writes = open_queue(), count()

    def limited(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(writes) == before:
                raise Killed
            return write(*args, **kwargs)

        return wrapped

    for name in ("create_new_study", "set_study_user_attr", "create_new_trial"):
        monkeypatch.setattr(queue.storage, name, limited(getattr(queue.storage, name)))
    with pytest.raises(Killed):
        queue.make(settings, jobs)
    assert open_queue().is_made() is (before > 2)  # the last study comes third: one, its settings, the other

    again = open_queue()
    again.make(settings, jobs)
    assert again.is_made()
    assert states(open_queue()) == dict.fromkeys("abcd", WAITING)
    other = {"first": {"rate": 0.1}, "second": {"rate": 0.3}}
    with pytest.raises(ValueError, match=r'"test/second" was made with rate 0\.2, not 0\.3'):
        open_queue().check(other)


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_failed_and_pruned_stay_so_until_asked(open_queue: Open) -> None:
    queue = filled(open_queue(), a=(), b=(), c=("a",), d=("c",))
    first, second = queue.claim(HERE), queue.claim(HERE)
    assert first is not None
    assert second is not None
    first.log_to("a.log")
    first.fail("ValueError: no")
    second.prune("lost")
    queue = open_queue()
    assert queue.take_over() == []
    assert states(queue) == {"a": FAILED, "b": PRUNED, "c": BLOCKED, "d": BLOCKED}
    status = queue.status()
    assert (status["a"].reason, status["a"].log, status["b"].reason) == ("ValueError: no", "a.log", "lost")
    assert status["c"].reason == "needs a, which is not done"
    assert queue.claim(HERE) is None
    assert queue.retry_failed() == ["a"]
    assert states(queue) == {"a": WAITING, "b": PRUNED, "c": WAITING, "d": WAITING}


def test_released_job_waits_again(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    for _ in range(5):  # as often as one likes
        claim = queue.claim(HERE)
        assert claim is not None
        claim.release()
    assert states(open_queue()) == {"a": WAITING}


# ---- taking over -----------------------------------------------------------------------------------------------------


def test_job_of_a_dead_process_is_taken_over_at_once(open_queue: Open) -> None:
    assert filled(open_queue(), a=()).claim(gone()) is not None
    queue = open_queue()
    assert queue.take_over() == ["a"]
    assert open_queue().take_over() == []
    claim = queue.claim(HERE)
    assert claim is not None
    assert claim.spec == {"n": "a"}
    claim.finish(2.0, {})
    assert queue.status()["a"].value == 2.0


def test_job_that_kills_its_workers_has_failed(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    for expected in (["a"], ["a"], []):
        assert queue.claim(gone()) is not None
        assert queue.take_over() == expected
    status = queue.status()["a"]
    assert (status.state, status.reason) == (FAILED, "its worker has died, 3 times")
    assert queue.claim(HERE) is None
    assert queue.retry_failed() == ["a"]
    assert queue.claim(HERE) is not None


def test_job_of_a_living_process_stays(open_queue: Open) -> None:
    assert filled(open_queue(), a=()).claim(HERE) is not None
    assert open_queue(patience=0.0).take_over() == []  # seen for the first time
    assert open_queue().take_over() == []


def test_silent_process_of_another_machine(open_queue: Open) -> None:
    elsewhere = Owner("elsewhere", 1, 0.0)
    claim = filled(open_queue(), a=()).claim(elsewhere)
    assert claim is not None
    queue, now = open_queue(patience=60.0), [0.0]
    queue._silence = Silence(lambda: now[0])
    assert queue.take_over() == []

    def looks(until: float) -> list[list[str]]:
        found = []
        while now[0] < until:
            now[0] += 4.0
            found.append(queue.take_over())
        return found

    assert looks(until=56.0) == [[]] * 14
    assert claim.beat()
    assert looks(until=120.0) == [[]] * 16  # a new sign of life, seen at 60
    assert looks(until=124.0) == [["a"]]
    assert not claim.beat()  # and its owner learns it


def test_worker_that_died_between_two_writes(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    trial = queue._trials("first")[0]
    assert queue._take("first", trial)  # running, without an owner
    queue._fail("first", trial)  # failed, without a follower
    assert states(queue) == {"a": WAITING}
    assert queue.claim(HERE) is None
    assert queue.take_over() == ["a"]
    assert queue.claim(HERE) is not None


def test_worker_that_died_before_it_gave_its_name(open_queue: Open) -> None:
    assert filled(open_queue(), a=())._take("first", open_queue()._trials("first")[0])  # running, without an owner
    queue, now = open_queue(patience=4.0), [0.0]
    queue._silence = Silence(lambda: now[0])
    assert queue.take_over() == []
    now[0] = 5.0
    assert queue.take_over() == ["a"]


def test_two_followers_of_one_trial_count_as_one(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    assert queue.claim(gone()) is not None
    lost = queue._trials("first")[0]
    queue.take_over()
    queue._add_again("first", lost, deaths=1)  # by a race
    assert queue.claim(HERE) is not None
    assert queue.claim(HERE) is None


# ---- wrong uses ------------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(open_queue: Open) -> None:
    queue = filled(open_queue(), a=())
    other = {"first": {"rate": 0.2, "model": {"name": "a"}, "split": "x"}, "second": {}}
    with pytest.raises(
        ValueError, match=r'"test/first" was made with rate 0\.1, not 0\.2; split None, not \'x\': give'
    ):
        open_queue().make(other, {"first": [Job("b")]})
    assert states(queue) == {"a": WAITING}


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}}) == ["b.c [1], not [2]"]
    assert differences({"a": 1}, {}) == ["a 1, not None"]
    assert differences({}, {}) == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("sqlite:////nowhere/at/all.db", "storage: cannot open sqlite:////nowhere/at/all.db: unable to open"),
        ("nonsense://here", "storage: cannot open nonsense://here: Can't load plugin"),
        ("postgresql+nodriver://me:secret@host/db", r"storage: cannot open postgresql\+nodriver://me:\*\*\*@host/db: "),
        ("/nowhere/at/all.journal", "storage: cannot open the journal file /nowhere/at/all.journal: "),
    ],
)
def test_storage_that_cannot_be_opened(address: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}") as caught:
        open_storage(address)
    assert "secret" not in str(caught.value)


def test_folder_of_a_storage_is_looked_for(tmp_path: Path) -> None:
    check_folder(f"sqlite:///{tmp_path}/a.db")
    check_folder(str(tmp_path / "a.journal"))
    check_folder("postgresql://host/db")
    for address in ("sqlite:////nowhere/at/all.db", "/nowhere/at/all.journal"):
        with pytest.raises(ValueError, match="there is no folder /nowhere/at"):
            check_folder(address)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but some kilobytes of text " * 100)
    with pytest.raises(ValueError, match="file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/notes.db")
