"""Records of jobs: how they stand, what waits for what, what counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from gru_fast.runs.files import differences, only_one
from gru_fast.runs.records import BLOCKED, DONE, FAILED, PRUNED, RUNNING, WAITING, Job, Records, Status, can_start

JOBS = [Job("a"), Job("b", {"x": 1}, ("a",)), Job("c", {}, ("b",)), Job("d", {}, ("a", "c"))]


def states(records: Records, running: tuple[str, ...] = ()) -> list[str]:
    return [job.state for job in records.status(JOBS, running).values()]


def end(records: Records, name: str, state: str, **more: object) -> None:
    job = next(job for job in JOBS if job.name == name)
    records.end(job, Status(name, job.spec, state=state, **more))  # type: ignore[arg-type]


def test_from_the_first_to_the_last(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert states(records) == [WAITING] * 4
    assert states(records, ("a",)) == [RUNNING, WAITING, WAITING, WAITING]
    end(records, "a", DONE, facts={"n": 1}, seconds=2.0)
    status = records.status(JOBS)
    assert [can_start(job, status) for job in status.values()] == [False, True, False, False]
    assert (status["a"].facts, status["a"].seconds, status["a"].log) == ({"n": 1}, 2.0, "")
    records.log_of("a").parent.mkdir()
    records.log_of("a").touch()
    assert records.status(JOBS)["a"].log == str(tmp_path / "logs" / "a.log")


@pytest.mark.parametrize("state", [FAILED, PRUNED])
def test_what_needs_one_that_will_not_come_is_blocked(tmp_path: Path, state: str) -> None:
    records = Records(tmp_path)
    end(records, "a", DONE)
    end(records, "b", state, reason="why")
    found = records.status(JOBS)
    assert [job.state for job in found.values()] == [DONE, state, BLOCKED, BLOCKED]
    assert found["d"].reason == "needs c, which is not done"
    records.forget(["b"])
    assert states(records) == [DONE, WAITING, WAITING, WAITING]


def test_begun_is_not_over_and_keeps_what_was_drawn(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.begin(Job("b", {"x": 1}, ("a",), {"gamma": 0.5}))
    assert not records.is_over("b")
    assert records.status(JOBS)["b"].spec == {"x": 1, "gamma": 0.5}
    assert records.names() == ["b"]
    (tmp_path / "jobs" / ".c.json.k3x").write_text('{"state": "done"')  # cut off by a kill
    assert records.names() == ["b"]
    assert states(records) == [WAITING] * 4


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "study" / "jobs" / ".driver"
    with only_one(path):
        said = rf"^{tmp_path}/study: process \d+ on .* works here already; wait for it, or stop it$"
        with pytest.raises(RuntimeError, match=said), only_one(path):
            pass
    with only_one(path):  # it is free again
        pass


def test_differences() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b 1, not 3"]
    assert differences({"a": 1}, {}) == ["a 1, not None"]


def test_a_job_to_be_done_again_keeps_what_was_drawn(tmp_path: Path) -> None:
    records, job = Records(tmp_path), Job("b", {"x": 1}, ("a",), {"gamma": 0.5})
    records.end(job, Status("b", job.spec, state=FAILED, reason="why"))
    records.forget(["b"])
    found = records.status([Job("a"), job])["b"]
    assert (found.state, found.spec) == (WAITING, {"x": 1, "gamma": 0.5})
