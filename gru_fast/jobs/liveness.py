"""Who works on a job, and how others tell that it is dead."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process that works on a job.

    Args:
        host: its machine.
        pid: its number there.
        born: when it was started, seconds since 1970: numbers are given out again.
    """

    host: str
    pid: int
    born: float

    @classmethod
    def of_this_process(cls) -> Owner:
        """The calling process."""
        import psutil

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_gone(self) -> bool:
        """Whether it is known to have ended. Of a process on another machine nothing is known."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.born or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def to_json(self) -> dict[str, Any]:
        """As :meth:`from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Owner:
        """What :meth:`to_json` has made."""
        return cls(str(content["host"]), int(content["pid"]), float(content["born"]))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Silence:
    """Since when a sign of life has not changed, by this process's clock: those of two machines need not agree."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Any, tuple[Any, float]] = {}

    def seconds(self, key: Any, sign: Any) -> float:
        """For how long ``key`` has shown ``sign`` and nothing else; 0 where it is new."""
        before = self._seen.get(key)
        if before is None or before[0] != sign:
            self._seen[key] = (sign, self._clock())
            return 0.0
        return self._clock() - before[1]
