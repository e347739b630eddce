"""Jobs on Ray: each done once whatever is killed, failures listed, nothing left running, nothing half-done counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import job_tasks
import pytest
import torch

from gru_fast.jobs import driver
from gru_fast.runs.records import BLOCKED, DONE, FAILED, PRUNED, Job, Records, Status


def run(tmp_path: Path, jobs: list[Job], workers: int = 2) -> dict[str, Status]:
    task = job_tasks.Scripted(tmp_path)
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
    printed, _ = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert "stopped; the same command goes on in" in printed
    wait_for(lambda: not is_running(launched))
    wait_for(lambda: not of_session(process))
    records = Records(tmp_path / "study")
    assert [records.is_over(name) for name in "abc"] == [True, False, False]

    found = run(tmp_path, [Job("a", {"do": ""}), Job("c", {"do": "wait once"})])
    assert [job.state for job in found.values()] == [DONE, DONE]
    assert begun(tmp_path) == {"a": 1, "b": 1, "c": 2}


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
    jobs = [Job("a"), Job("b")]
    found = driver.run(tmp_path / "study", jobs, job_tasks.Scripted(tmp_path), where, job_tasks.outcome, draw)
    assert drawn == ["b"]
    assert [job.spec for job in found.values()] == [{"x": 7}, {"x": 1}]
