"""Commands that a launcher starts: what they see, how they fail, and that they end with their worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gru_fast.jobs.command import launched

WAITS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def waiting(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process that has launched another, which waits; and the other's number."""
    file = tmp_path / "pid"
    line = [sys.executable, "-c", WAITS, str(file)]
    does = (
        "import signal\nfrom gru_fast.jobs import command\n"
        f"signal.signal(signal.SIGTERM, signal.default_int_handler)\ncommand.launched({line!r})"
    )
    # Not here: a checkout in which nothing is built hides the installed package.
    worker = subprocess.Popen([sys.executable, "-c", does], cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for(lambda: file.is_file() and bool(file.read_text()))
    return worker, int(file.read_text())


def test_what_is_launched_is_shown_and_sees_the_devices_of_the_job(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    launched(line)
    shown = capfd.readouterr().out.splitlines()
    assert [shown[0].startswith(f"$ {sys.executable} -c "), *shown[1:]] == [True, "4,5"]


def test_a_failure_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"python\S* ended with exit status 3; the log has its line"):
        launched([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_program_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no-such-launcher ended with exit status 1"):
        launched(["no-such-launcher", "x"])
    assert "launch: cannot start no-such-launcher: No such file or directory" in capfd.readouterr().err


def test_asked_to_stop_a_worker_takes_it_along(tmp_path: Path) -> None:
    worker, pid = waiting(tmp_path)
    worker.terminate()
    assert worker.wait(90) != 0
    wait_for(lambda: has_ended(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a program outlives a parent that was killed")
def test_killed_a_worker_takes_it_along(tmp_path: Path) -> None:
    worker, pid = waiting(tmp_path)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(90)
    wait_for(lambda: has_ended(pid))
