"""Storages in files: whose they are, and locks that killed processes leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gru_fast.jobs.storage import Outage, file_of, is_of

_BEGIN = """
import optuna
from gru_fast.jobs import storage

storage.GRACE_SECONDS = 3  # the least that Optuna takes without a warning
opened = storage.open_storage("folder/jobs.journal")
"""


def test_lock_of_a_killed_process_is_waited_for_only_so_long(tmp_path: Path) -> None:
    """In a relative path, as the default is, seen from another folder than the journal's."""
    (tmp_path / "folder").mkdir()

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _BEGIN + code]
        return subprocess.run(command, cwd=tmp_path, check=False, timeout=60, capture_output=True, text=True)

    killed = run("""
import os, signal
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # what it has written is there, and so is the lock
optuna.create_study(storage=opened, study_name="first")
""")
    assert killed.returncode == -9
    assert "jobs.journal.lock" in [path.name for path in (tmp_path / "folder").iterdir()]
    done = run("""
optuna.create_study(storage=opened, study_name="second")
print(optuna.get_all_study_names(opened))
""")
    assert (done.returncode, done.stdout) == (0, "['first', 'second']\n"), done.stderr
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["jobs.journal"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("sqlite:///a/b.db", Path("a/b.db")),
        ("sqlite:////a/b.db?timeout=3", Path("/a/b.db")),
        ("a/b.journal", Path("a/b.journal")),
        ("postgresql://host/db", None),
    ],
)
def test_file_of_a_storage(address: str, expected: Path | None) -> None:
    assert file_of(address) == expected


def test_what_belongs_to_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("sqlite:///jobs.db", f"sqlite:///{tmp_path}/jobs.db"):
        for name in ("jobs.db", "jobs.db-journal", "jobs.db-wal", "jobs.db-shm"):
            assert is_of(address, tmp_path / name)
        for name in ("jobs.db.txt", "notes.txt", "job", "jobs.db-old", "below/jobs.db"):
            assert not is_of(address, tmp_path / name)
    assert is_of("jobs.journal", tmp_path / "jobs.journal")
    assert is_of("jobs.journal", tmp_path / "jobs.journal.lock")
    assert not is_of("postgresql://host/jobs.db", tmp_path / "jobs.db")


def test_an_outage_is_borne_from_its_first_error_on() -> None:
    now = [0.0]
    outage = Outage(60.0, clock=lambda: now[0])

    def away() -> int:
        raise OSError("nobody there")

    assert outage.bear(lambda: 7) == 7
    now[0] = 1000.0  # a long job in between is none of its time
    assert outage.bear(away) is None
    now[0] = 1060.0
    assert outage.bear(away) is None
    assert outage.bear(lambda: 8) == 8
    now[0] = 1070.0
    assert outage.bear(away) is None
    now[0] = 1130.1
    with pytest.raises(OSError, match="nobody there"):
        outage.bear(away)
