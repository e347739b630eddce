"""Processes that compute together: four, started once, for jobs that take two, three or four of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PATIENCE = 90.0  # seconds; a job takes one or two
_GRACE = 5.0  # seconds that the others have when one process has died
_PRELOAD = ["torch.distributed.fsdp", "torch.distributed.tensor", "gru_fast.unlearn.trainer"]


class Processes:
    """``count`` processes, one thread each, that wait for jobs. A process group of gloo joins those of each job."""

    def __init__(self, count: int = 4) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        self._jobs = 0
        self._count = count
        self._begin()

    def _begin(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        for rank in range(self._count):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: Callable[..., Any], world: int, *args: Any, **settings: Any) -> list[Any]:
        """``job(*args, **settings)`` in ``world`` processes at once; what each returns. ``job`` must be importable.

        Raises what went wrong in the first of them, or TimeoutError: a collective that not all have entered, a process
        that has died. Whatever happened, the next job finds processes that wait for it.
        """
        self._start(job, world, args, settings)
        answers = [self._answer(job, rank, world) for rank in range(world)]
        failed = [f"process {rank}:\n{text}" for rank, (is_fine, text) in enumerate(answers) if not is_fine]
        if failed:
            raise AssertionError("\n".join(failed))
        return [answer for _, answer in answers]

    def run_until_one_dies(self, job: Callable[..., Any], world: int, *args: Any, **settings: Any) -> list[int | None]:
        """``job`` in ``world`` processes, one of which is killed in it: how each has ended; these are of no more use.

        The others may notice it and stop by themselves. Then they are killed, as a launcher would do. None: one that
        was.
        """
        self._start(job, world, args, settings)
        processes = self._processes[:world]
        if not multiprocessing.connection.wait([process.sentinel for process in processes], _PATIENCE):
            raise TimeoutError(f"{job.__name__}: no process of {world} has died")
        for pipe, process in zip(self._pipes, processes, strict=False):
            if process.is_alive():
                pipe.poll(_GRACE)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        return codes

    def _start(self, job: Callable[..., Any], world: int, args: Any, settings: Any) -> None:
        if not all(process.is_alive() for process in self._processes[:world]):  # one has died after its answer
            self._end()
            self._begin()
        self._jobs += 1
        meeting = Path(self._folder.name) / f"meeting-{self._jobs}"
        for pipe in self._pipes[:world]:
            pipe.send((job, world, str(meeting), args, settings))

    def _answer(self, job: Callable[..., Any], rank: int, world: int) -> tuple[bool, Any]:
        try:
            if self._pipes[rank].poll(_PATIENCE):
                return self._pipes[rank].recv()
        except EOFError:
            pass
        codes = [process.exitcode for process in self._processes[:world]]
        self._end()
        self._begin()
        raise TimeoutError(f"{job.__name__}: no answer of process {rank} of {world}; exit codes {codes}")

    def close(self) -> None:
        """Ends them."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()  # the process ends when it reads no more
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()


def _work(rank: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            job, world, meeting, args, settings = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
            dist.barrier()  # who is done sooner than others have connected would take their connection down
            pipe.send((True, job(*args, **settings)))
        except BaseException:  # noqa: BLE001 - told to the test, which raises it
            pipe.send((False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
