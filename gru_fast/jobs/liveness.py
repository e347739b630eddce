"""Who works on a job, and how others tell that it is dead."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_SAME_SECONDS = 3.0  # a time of boot is had in whole seconds, and clocks are set while it is read
_GAP_SECONDS = 5.0  # of silence that count between two looks, which are a second apart as a rule


@dataclass(frozen=True)
class Owner:
    """A process that works on a job.

    Args:
        host: its machine.
        pid: its number there.
        started: seconds from the boot of its machine, which no clock that is set moves: numbers are given out again.
            None: not known.
    """

    host: str
    pid: int
    started: float | None

    @classmethod
    def of_this_process(cls) -> Owner:
        """The calling process."""
        import psutil

        return cls(socket.gethostname(), os.getpid(), _started(psutil.Process()))

    def is_gone(self) -> bool:
        """Whether it is known to have ended. Of a process on another machine nothing is known."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return self._is_another(process) or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _is_another(self, process: Any) -> bool:
        """Whether a process of this number is known to be a later one."""
        return self.started is not None and abs(_started(process) - self.started) > _SAME_SECONDS

    def to_json(self) -> dict[str, Any]:
        """As :meth:`from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Owner:
        """What :meth:`to_json` has made, or an earlier version, which noted the time of day (``born``)."""
        started = content.get("started")
        return cls(str(content["host"]), int(content["pid"]), None if started is None else float(started))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(process: Any) -> float:
    """Seconds from boot to the start of a psutil.Process, which adds the time of boot as the clock has it now."""
    import psutil

    return float(process.create_time() - psutil.boot_time())


class Silence:
    """For how long a sign of life has not changed, by this process's clock: those of two machines need not agree.

    Between two looks a few seconds count at most. A process that was stopped for long, with those that it looks at, as
    a scheduler suspends a job, must see what they do when all go on before it takes them for dead.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Any, tuple[Any, float, float]] = {}  # sign, seconds of silence, last look

    def seconds(self, key: Any, sign: Any) -> float:
        """For how long ``key`` has shown ``sign`` and nothing else; 0 where it is new."""
        now, silence = self._clock(), 0.0
        before = self._seen.get(key)
        if before is not None and before[0] == sign:
            silence = before[1] + min(now - before[2], _GAP_SECONDS)
        self._seen[key] = (sign, silence, now)
        return silence
