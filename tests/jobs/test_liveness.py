"""Who works on a job: known by its birth whatever the clock says, and dead after a silence."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gru_fast.jobs.liveness import Owner, Silence

HERE = Owner.of_this_process()


def test_owner_is_known_by_its_birth_too() -> None:
    assert HERE.started is not None
    assert not HERE.is_gone()
    assert replace(HERE, started=HERE.started - 100).is_gone()  # its number was given out again
    assert replace(HERE, started=HERE.started + 100).is_gone()
    assert not Owner("elsewhere", os.getpid(), 0.0).is_gone()
    assert Owner.from_json(HERE.to_json()) == HERE


def test_owner_that_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = Owner(HERE.host, process.pid, None)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert owner.is_gone()  # a zombie
    process.wait()
    assert owner.is_gone()


def test_birth_is_the_kernels() -> None:
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # man 5 proc: (22) starttime
    assert HERE.started == pytest.approx(int(ticks) / os.sysconf("SC_CLK_TCK"), abs=2)


@pytest.mark.parametrize("seconds", [-3600.0, -1.0, 1.0, 3600.0])
def test_a_clock_that_is_set_kills_nobody(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """psutil takes the time of boot for the clock's minus the seconds since then, and so all births move with it."""
    before = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: before + seconds)
    assert psutil.Process().create_time() - before >= seconds  # it does move
    assert not HERE.is_gone()
    assert Owner.of_this_process().started == pytest.approx(HERE.started)


def test_records_of_earlier_versions() -> None:
    """They have the time of day: a number that lives may be theirs, one that does not is gone."""
    record = {"host": HERE.host, "pid": os.getpid(), "born": 1.7e9}
    assert not Owner.from_json(record).is_gone()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert Owner.from_json({**record, "pid": process.pid}).is_gone()


def test_silence() -> None:
    now = [0.0]
    silence = Silence(lambda: now[0])
    assert silence.seconds("a", 1) == 0
    now[0] = 3.0
    assert (silence.seconds("a", 1), silence.seconds("b", 1)) == (3, 0)
    now[0] = 7.0
    assert (silence.seconds("a", 1), silence.seconds("b", 2)) == (7, 0)
    assert silence.seconds("a", 1) == 7
    assert silence.seconds("a", 2) == 0


def test_time_in_which_nobody_looked_is_hardly_silence() -> None:
    """All were stopped: who goes on first must not take the others for dead."""
    now = [0.0]
    silence = Silence(lambda: now[0])
    silence.seconds("a", 1)
    now[0] = 3600.0
    assert silence.seconds("a", 1) == 5
    now[0] = 3604.0
    assert silence.seconds("a", 1) == 9
