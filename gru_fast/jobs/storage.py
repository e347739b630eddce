"""A storage of Optuna: opened by its address, and asked with patience."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_T = TypeVar("_T")
_LOCK_SECONDS = 60  # how long SQLite waits for another process that is writing

# A lock on a journal file that nobody has let go of for so long is taken from a process that was killed. Writing a few
# lines takes less, even in a shared folder; and meanwhile nobody can give a sign of life, for which patience must last.
GRACE_SECONDS = 20

_BESIDE_SQLITE = ("-journal", "-wal", "-shm")


class Outage:
    """Bears the errors of a storage that is away for a while, and no longer.

    Args:
        seconds: from the first error on.
        clock: seconds that go by.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: float | None = None

    def bear(self, ask: Callable[[], _T]) -> _T | None:
        """What the storage answers; None: nothing at the moment. Its own error, where that has lasted for too long."""
        try:
            answer = ask()
        except Exception as error:
            if self._since is None:
                self._since = self._clock()
                sys.stderr.write(f"the jobs' storage does not answer: {type(error).__name__}: {error}; waiting\n")
            if self._clock() - self._since > self._seconds:
                raise
            return None
        self._since = None
        return answer


def open_storage(address: str) -> BaseStorage:
    """The storage at ``address``, made if it is not there.

    Args:
        address: a URL as Optuna takes it (``sqlite:///sweep.db``, ``postgresql://...``, ``mysql://...``,
            ``redis://...``), or the path of a journal file. Several machines that share a folder use a journal file:
            its locks hold on network file systems, SQLite's do not everywhere.

    Raises:
        ValueError: it cannot be opened, with the reason. A password in a URL is not repeated.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in address:
        return _journal(Path(address))
    from sqlalchemy.exc import SQLAlchemyError

    is_sqlite = address.startswith("sqlite")
    try:
        if address.startswith("redis"):
            return optuna.storages.get_storage(address)
        connect = {"connect_args": {"timeout": _LOCK_SECONDS}} if is_sqlite else {}
        database = optuna.storages.RDBStorage(address, engine_kwargs=connect)
        if is_sqlite:
            _lock_before_reading(database.engine)
        return optuna.storages.get_storage(database)
    except (SQLAlchemyError, ImportError, RuntimeError, OSError) as error:
        raise ValueError(f"storage: cannot open {_public(address)}: {_reason(error)}") from error


def _lock_before_reading(engine: Any) -> None:
    """Has every transaction take SQLite's lock when it begins.

    Optuna looks at a trial and then sets it running, and for that locks the row, which SQLite does not know: two
    processes would claim one job. https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were made before


def file_of(address: str) -> Path | None:
    """The file that a storage is in; None of a server."""
    if address.startswith("sqlite:///"):
        return Path(address.removeprefix("sqlite:///").partition("?")[0])
    return None if "://" in address else Path(address)


def is_of(address: str, path: Path) -> bool:
    """Whether a file is the storage's own: the one it is in, or what processes keep beside that and a kill leaves."""
    file = file_of(address)
    if file is None or path.parent.resolve() != file.parent.resolve() or not path.name.startswith(file.name):
        return False
    rest = path.name.removeprefix(file.name)
    return not rest or rest.startswith(".lock") or rest in _BESIDE_SQLITE


def check_folder(address: str) -> None:
    """Refuses a file's address whose folder does not exist, before anything is made."""
    file = file_of(address)
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"storage: cannot open {address}: there is no folder {file.parent}")


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # Not the lock that Optuna takes by default, a link to the file: of a relative path it leads nowhere, and one that a
    # killed process has left would be waited for without end.
    lock = JournalFileOpenLock(str(path), grace_period=GRACE_SECONDS)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (OSError, ValueError) as error:
        raise ValueError(f"storage: cannot open the journal file {path}: {_reason(error)}") from error


def _public(address: str) -> str:
    """The address without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return address.partition("://")[0] + "://..."


def _reason(error: BaseException) -> str:
    """What the driver says, in one line, without SQLAlchemy's link to its manual."""
    cause: Any = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()).partition(" (Background on this error")[0]
