"""Jobs on Ray: each done once whatever is killed, failures listed, nothing left running, nothing half-done counts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import job_tasks
import pytest
import torch

from gru_fast.jobs import doing, driver
from gru_fast.runs.records import BLOCKED, DONE, FAILED, PRUNED, Job, Records, Status


def run(tmp_path: Path, jobs: list[Job], workers: int = 2) -> dict[str, Status]:
    task = job_tasks.Scripted(tmp_path)
    with driver.alone(tmp_path / "study"):
        return driver.run(tmp_path / "study", jobs, task, driver.Cluster(workers), job_tasks.outcome)


def begun(tmp_path: Path) -> Counter[str]:
    """How often each job has been begun."""
    file = tmp_path / "done"
    return Counter(line.split()[0] for line in file.read_text().splitlines()) if file.is_file() else Counter()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def of_session(process: subprocess.Popen[Any]) -> list[str]:
    """Processes that a driver has started, whatever they are called, and it.

    Two helpers of Ray's raylet are left out: where a driver is killed they notice after a minute that they are alone.
    """
    mark = f"OF_DRIVER={process.pid}".encode()
    folders = [folder for folder in Path("/proc").glob("[0-9]*") if mark in read(folder / "environ").split(b"\0")]
    found = [read(folder / "cmdline").decode() for folder in folders if is_running(int(folder.name))]
    return [line for line in found if not line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]


def read(file: Path) -> bytes:
    """Of a process that may end just then."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.fixture(autouse=True)
def workers_find_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")])))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver in a session of its own, whose processes can be told by a variable."""
    started = []

    def start(*specs: str) -> subprocess.Popen[str]:
        # The shell's number is the driver's: it becomes it.
        line = 'OF_DRIVER=$$ exec "$0" "$@"'
        argv = ["sh", "-c", line, sys.executable, job_tasks.__file__, str(tmp_path), *specs]
        process = subprocess.Popen(
            argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_job_ends_in_its_way_and_the_rest_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [
        Job("plain"), Job("bad", {"do": "fail"}), Job("gone", {"do": "exit"}), Job("out", {"do": "prune"}),
        Job("dies", {"do": "die"}), Job("dies-once", {"do": "die once"}), Job("after", {}, ("plain", "dies-once")),
        Job("never", {}, ("bad",)),
    ]  # fmt: skip
    found = run(tmp_path, jobs)
    printed = capfd.readouterr().out
    assert {name: job.state for name, job in found.items()} == {
        "plain": DONE, "bad": FAILED, "gone": FAILED, "out": PRUNED, "dies": FAILED, "dies-once": DONE, "after": DONE,
        "never": BLOCKED,
    }  # fmt: skip
    assert found["bad"].reason == "ValueError: this one cannot be done"
    assert found["gone"].reason == "SystemExit: 2"
    assert (found["out"].reason, found["out"].facts) == ("out of reach", {"epoch": 1})
    assert found["dies"].reason == "its worker has died, 3 times"
    assert begun(tmp_path) == {**dict.fromkeys(found.keys() - {"never"}, 1), "dies": 3, "dies-once": 2}
    log = tmp_path / "study" / "logs" / "bad.log"
    assert found["bad"].log == str(log)
    assert log.read_text().startswith("--- bad, ")
    assert all(text in log.read_text() for text in ("this is bad", "from a process below", "Traceback", "cannot be"))
    assert printed.startswith(f"{tmp_path / 'study'}: 8 jobs\n")
    assert "after  by after" in printed
    assert f"bad  failed: ValueError: this one cannot be done  0 s  ({log})" in printed

    # Workers are used again, compute with their share of the threads, and stand where the driver does.
    done = [job.facts for job in found.values() if job.state == DONE]
    assert {facts["cwd"] for facts in done} == {str(Path.cwd())}
    share = max(1, torch.get_num_threads() // 2)
    assert {facts["threads"] for facts in done} == {share}

    # Nothing is left to do: Ray is not even started.
    began = time.monotonic()
    assert run(tmp_path, jobs) == found
    assert time.monotonic() - began < 2
    assert capfd.readouterr().out == f"{tmp_path / 'study'}: 8 jobs, 8 of them over\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_stopped_leaves_nothing_running_and_goes_on(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], how: signal.Signals
) -> None:
    process = start("", "launch", "wait once")
    wait_for(lambda: (tmp_path / "launched").is_file() and begun(tmp_path)["c"])
    launched = int((tmp_path / "launched").read_text())
    assert len(of_session(process)) > 3
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does, to all in the foreground
    else:
        process.send_signal(how)
    printed, _ = process.communicate(timeout=120)
    if how != signal.SIGKILL:
        assert "stopped; the same command goes on in" in printed
    wait_for(lambda: not is_running(launched))
    wait_for(lambda: not of_session(process))
    records = Records(tmp_path / "study")
    assert [records.is_over(name) for name in "abc"] == [True, False, False]

    found = run(tmp_path, [Job("a", {"do": ""}), Job("c", {"do": "wait once"})])
    assert [job.state for job in found.values()] == [DONE, DONE]
    assert begun(tmp_path) == {"a": 1, "b": 1, "c": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_driver_whose_ray_has_died_says_so(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """It would wait for ever; the job has not failed."""
    process = start("wait once")
    wait_for(lambda: begun(tmp_path)["a"])
    mark = f"OF_DRIVER={process.pid}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        if mark in read(folder / "environ").split(b"\0") and b"raylet/raylet\0" in read(folder / "cmdline"):
            os.kill(int(folder.name), signal.SIGKILL)
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "RuntimeError: Ray has ended: " in printed
    assert not Records(tmp_path / "study").is_over("a")


def test_two_drivers_do_not_share_a_folder(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    first = start("wait once")
    wait_for(lambda: begun(tmp_path)["a"])
    with pytest.raises(RuntimeError, match=rf"study: process {first.pid} on .* works here already; wait for it, or"):
        run(tmp_path, [Job("a")])
    assert begun(tmp_path) == {"a": 1}


def test_a_machine_that_dies_leaves_its_job_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own way to have several machines on one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        first = cluster.add_node(num_cpus=1, **small)
        jobs = [Job("a"), Job("b", {"do": "wait once"}, ("a",)), Job("c", {}, ("b",))]
        task, found = job_tasks.Scripted(tmp_path), {}

        def work() -> None:
            where = driver.Cluster(workers=1, address=cluster.address)
            found.update(driver.run(tmp_path / "study", jobs, task, where, job_tasks.outcome))

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: begun(tmp_path)["b"])
        cluster.remove_node(first, allow_graceful=False)
        cluster.add_node(num_cpus=1, **small)
        thread.join(120)
        assert not thread.is_alive()
    finally:
        cluster.shutdown()
    assert [job.state for job in found.values()] == [DONE, DONE, DONE]
    assert begun(tmp_path) == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
        ({"gpus_per_run": -1}, "gpus_per_run: expected a whole number, or a share below 1, got -1"),
        ({"gpus_per_run": 1.5, "workers": 0}, "workers: .*; gpus_per_run: .* got 1.5"),
    ],
)
def test_wrong_uses(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        driver.Cluster(**settings)


def test_what_was_drawn_stays(tmp_path: Path) -> None:
    """A driver that was killed has noted it before the job began."""
    drawn = []

    def draw(job: Job, status: Any) -> Job:
        drawn.append(job.name)
        return Job(job.name, job.spec, job.needs, {"x": len(drawn)})

    records = Records(tmp_path / "study")
    records.begin(Job("a", {}, (), {"x": 7}))
    where = driver.Cluster(1)
    jobs = [Job("a"), Job("b"), Job("c", {"do": "die"})]
    found = driver.run(tmp_path / "study", jobs, job_tasks.Scripted(tmp_path), where, job_tasks.outcome, draw)
    assert drawn == ["b", "c"]
    assert [job.spec for job in found.values()] == [{"x": 7}, {"x": 1}, {"do": "die", "x": 2}]
    assert (found["c"].state, records.read("c")["drawn"]) == (FAILED, {"x": 2})  # also where it could not end itself


class FakeRay(SimpleNamespace):
    """A cluster of machines, each with its resources; what a task returns, or raises."""

    def __init__(self, *machines: dict[str, float], result: Any = True) -> None:
        class RayError(Exception): ...

        super().__init__(exceptions=SimpleNamespace(RayError=RayError))
        self.machines, self.result = machines, result

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.machines]

    def cluster_resources(self) -> dict[str, float]:
        return dict(sum((Counter(resources) for resources in self.machines), Counter()))

    def get(self, ended: Any) -> Any:
        if self.result is True or self.result is False:
            return self.result
        raise self.exceptions.RayError(self.result)


@pytest.mark.parametrize(
    ("machines", "cluster", "gpus"),
    [
        ([{"CPU": 8}], {}, 0),
        ([{"CPU": 8, "GPU": 4}], {"workers": 2}, 2),  # an equal part of this machine's
        ([{"CPU": 8, "GPU": 1}], {"workers": 4}, 0.25),
        ([{"CPU": 8, "GPU": 8}], {"gpus_per_run": 8}, 8),
        ([{"GPU": 8}, {"GPU": 8}], {"address": "auto", "gpus_per_run": 8}, 8),
        ([{"CPU": 8}, {"CPU": 8}], {"address": "auto"}, 0),
    ],
)
def test_gpus_of_a_run(machines: list[dict[str, float]], cluster: dict[str, Any], gpus: float) -> None:
    assert driver._gpus(FakeRay(*machines), driver.Cluster(**cluster)) == gpus


def test_gpus_that_no_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused here; a cluster may grow."""
    with pytest.raises(ValueError, match="--gpus-per-run 2: no machine has so many, the largest has 1; ask for fewer"):
        driver._gpus(FakeRay({"GPU": 1}), driver.Cluster(gpus_per_run=2))
    with pytest.raises(ValueError, match="--gpus-per-run: the cluster at auto has 16 GPUs; say how many a run gets"):
        driver._gpus(FakeRay({"GPU": 8}, {"GPU": 8}), driver.Cluster(address="auto"))
    assert driver._gpus(FakeRay({"GPU": 8}, {"GPU": 8}), driver.Cluster(address="auto", gpus_per_run=16)) == 16
    assert "no machine has so many, the largest has 8; runs wait until one joins" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cluster", "gpus", "jobs", "most"),
    [
        ({}, 0, None, 1),
        ({"workers": 3}, 0, None, 3),
        ({"address": "auto"}, 0, 50, 50),  # all of them: Ray has a queue
        ({"address": "auto"}, 0, None, 8),  # drawn late, so as many as there are cores
        ({"address": "auto"}, 0.5, None, 4),  # or GPUs
        ({"address": "auto"}, 8, None, 1),  # never none
        ({"address": "auto", "workers": 3}, 0.5, None, 3),
    ],
)
def test_jobs_begun_at_a_time(cluster: dict[str, Any], gpus: float, jobs: int | None, most: int) -> None:
    ray = FakeRay({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1})
    assert driver._most(ray, driver.Cluster(**cluster), gpus, jobs) == most


def test_a_worker_that_dies_on_its_way_out_has_done_its_job(tmp_path: Path) -> None:
    records, job = Records(tmp_path), Job("a")
    records.end(job, Status("a", {}, state=DONE, facts={"x": 1}))
    driver._see_to(FakeRay(result="died"), None, job, records)
    assert records.read("a")["state"] == DONE
    driver._see_to(FakeRay(result="died"), None, Job("b"), records)
    assert (records.read("b")["state"], records.read("b")["reason"]) == (FAILED, "RayError: died")


def test_a_job_that_somebody_still_works_on_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process of a driver before this one, cut off from it, say: the job has not failed."""
    monkeypatch.setattr(doing, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(doing, "_settle_in", lambda place: None)
    records, place = Records(tmp_path / "study"), doing.Place(tmp_path / "study", str(tmp_path), 1)
    job, task = Job("a"), job_tasks.Scripted(tmp_path)
    with locked(records.log_of("a")):
        assert not doing.do(task, job, place)
    assert records.read("a") is None
    driver._see_to(FakeRay(result=False), None, job, records)
    assert capsys.readouterr().err.startswith("a: another process still works on it")
    assert records.read("a") is None
    assert doing.do(task, job, place)
    assert records.read("a")["state"] == DONE


@contextlib.contextmanager
def locked(log: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True)
    with log.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("given", [None, "3"])
def test_threads_of_a_run(given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An equal share here, one on a cluster, where a run asks for one core; OMP_NUM_THREADS says otherwise."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(given or 8))
    places: list[Any] = []

    class Ray(FakeRay):
        def remote(self, *given: Any, **options: Any) -> Any:
            if options:
                return lambda function: self
            places.append(given[-1])
            return None

        def options(self, **_: Any) -> Any:
            return self

    for cluster in (driver.Cluster(workers=2), driver.Cluster(workers=2, address="auto")):
        driver._submitter(Ray({"CPU": 8}), cluster, 0, job_tasks.Scripted(tmp_path), tmp_path)(Job("a"))
    assert [place.threads for place in places] == ([3, 3] if given else [4, 1])
    assert [place.variables.get("OMP_NUM_THREADS") for place in places] == [given, given]
