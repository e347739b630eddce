"""Processes that compute together: four, started once, for jobs that take two, three or four of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PATIENCE = 90.0  # seconds; a job takes one or two
_GRACE = 5.0  # seconds that the others have when one process has died
_PRELOAD = ["torch.distributed.fsdp", "torch.distributed.tensor", "gru_fast.unlearn.trainer"]


class Processes:
    """``count`` processes, one thread each, that wait for jobs. A process group of gloo joins those of each job."""

    def __init__(self, count: int = 4) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        self._jobs = 0
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: Callable[..., Any], world: int, *args: Any, **settings: Any) -> list[Any]:
        """``job(*args, **settings)`` in ``world`` processes at once; what each returns. ``job`` must be importable.

        Raises what went wrong in the first of them, or TimeoutError: a collective that not all have entered.
        """
        self._start(job, world, args, settings)
        answers = []
        for rank, pipe in enumerate(self._pipes[:world]):
            if not pipe.poll(_PATIENCE):
                raise TimeoutError(f"{job.__name__}: process {rank} of {world} does not answer")
            answers.append(pipe.recv())
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
        self._jobs += 1
        meeting = Path(self._folder.name) / f"meeting-{self._jobs}"
        for pipe in self._pipes[:world]:
            pipe.send((job, world, str(meeting), args, settings))

    def close(self) -> None:
        """Ends them."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()  # the process ends when it reads no more
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def _work(rank: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            job, world, meeting, args, settings = pipe.recv()
        except EOFError:
            return
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        try:
            pipe.send((True, job(*args, **settings)))
        except BaseException:  # noqa: BLE001 - told to the test, which raises it
            pipe.send((False, traceback.format_exc()))
        finally:
            dist.destroy_process_group()
