"""Several worker processes on this machine, and what is shown of the queue meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.jobs.command import DEVICES
from gru_fast.jobs.queue import Queue
from gru_fast.jobs.status import Status
from gru_fast.jobs.storage import Outage, file_of, open_storage
from gru_fast.jobs.worker import BEAT_SECONDS, EXIT_TAKEN_OVER, Task, work

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_LOOK_SECONDS = 0.5
_MAX_FRUITLESS = 3  # workers in a row that end by an error of their own while no job ends


@dataclass(frozen=True)
class Address:
    """A queue, as another process can open it; see :class:`~gru_fast.jobs.queue.Queue`."""

    storage: str
    name: str
    groups: tuple[str, ...]
    patience: float = 60.0

    def open(self) -> Queue:
        """The queue."""
        return Queue(open_storage(self.storage), self.name, self.groups, self.patience)

    def open_made(self) -> Queue | None:
        """The queue, if somebody has made all of it; nothing is made by looking."""
        file = file_of(self.storage)
        queue = self.open() if file is None or file.is_file() else None
        return queue if queue is not None and queue.is_made() else None


@dataclass(frozen=True)
class Workers:
    """How the jobs are done.

    Args:
        task: does a job; it is sent to other processes, so it must be picklable.
        logs: folder of the logs.
        count: processes.
        devices: CUDA devices, as in CUDA_VISIBLE_DEVICES; workers take turns. Empty: those this process sees. Of a
            group ("0,1,2,3") the worker itself takes the first, and what it launches all.
        beat: seconds between two signs of life.
    """

    task: Task
    logs: Path
    count: int = 1
    devices: Sequence[str] = ()
    beat: float = BEAT_SECONDS


def run(address: Address, workers: Workers, show: Callable[[Mapping[str, Status]], Any]) -> dict[str, Status]:
    """Does the jobs of a queue, together with whoever else works on it; returns when none is left.

    A worker that ends by accident, or after a job that failed, is replaced by a new one.

    Args:
        show: called with the status of all jobs, again and again.

    Raises:
        RuntimeError: workers end by accident one after another, and nothing gets done.
        Exception: the storage's own, where it was away for longer than the patience.
        KeyboardInterrupt: after the jobs in hand were put back; by Ctrl-C, or by SIGTERM, which is how a cluster's
            scheduler asks a job to stop.
    """
    queue, outage, pool = address.open(), Outage(address.patience), _Pool(address, workers)
    with _stopped_by_sigterm():
        try:
            while True:
                status = outage.bear(partial(_look, queue))
                if status is not None:
                    show(status)
                    if not any(each.is_pending for each in status.values()):
                        return status
                    pool.fill(sum(not each.is_pending for each in status.values()))
                time.sleep(_LOOK_SECONDS)
        finally:
            pool.stop()


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt; in the main thread alone, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _look(queue: Queue) -> dict[str, Status]:
    """Every job by name, after jobs of the dead were put back."""
    queue.take_over()
    return queue.status()


class _Pool:
    """The processes."""

    def __init__(self, address: Address, workers: Workers) -> None:
        self._address = address
        self._workers = workers
        self._processes: list[BaseProcess | None] = [None] * workers.count
        self._fruitless = 0
        self._ended = -1  # jobs, when last looked at

    def fill(self, ended: int) -> None:
        """Starts the workers that are missing. ``ended``: jobs that are over, one way or the other."""
        if ended != self._ended:
            self._fruitless, self._ended = 0, ended
        for index, process in enumerate(self._processes):
            if process is not None and process.is_alive():
                continue
            # Killed (< 0) is a matter between the job and its number of tries.
            if process is not None and (process.exitcode or 0) > 0 and process.exitcode != EXIT_TAKEN_OVER:
                self._fruitless += 1
                if self._fruitless == _MAX_FRUITLESS:
                    raise RuntimeError(
                        f"workers end one after another (the last with exit code {process.exitcode}) and no job gets "
                        f"done; see {_own_log(self._workers, index)}"
                    )
            self._processes[index] = self._start(index)

    def stop(self) -> None:
        """Has every worker put its job back and end."""
        running = [process for process in self._processes if process is not None and process.is_alive()]
        for process in running:
            process.terminate()
        for process in running:
            process.join()

    def _start(self, index: int) -> BaseProcess:
        # spawn: a forked process could use neither CUDA nor the storage's connections.
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=_main, args=(self._address, self._workers, index, os.getpid()), name=f"worker-{index}"
        )
        process.start()
        return process


def _own_log(workers: Workers, index: int) -> Path:
    """What a worker says between jobs."""
    return workers.logs / f"worker-{index}.log"


def _main(address: Address, workers: Workers, index: int, parent: int) -> None:
    """A worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C: the parent decides
    signal.signal(signal.SIGTERM, _interrupt)
    devices = workers.devices or visible_devices()
    if devices:
        own = devices[index % len(devices)]
        os.environ |= {"CUDA_VISIBLE_DEVICES": own.partition(",")[0], DEVICES: own}
    log = _own_log(workers, index)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    _share_threads(workers.count)
    try:
        # Where the parent was killed, nobody wants the rest; the job in hand is done to its end.
        work(address.open(), workers.task, workers.logs, goes_on=partial(_has_parent, parent), beat=workers.beat)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: putting the job back must not be interrupted
    raise KeyboardInterrupt


def _has_parent(parent: int) -> bool:
    return os.getppid() == parent


def visible_devices() -> list[str]:
    """The CUDA devices of this process, without touching them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def _share_threads(workers: int) -> None:
    """This worker's share of the processor's cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
