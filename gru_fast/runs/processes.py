"""Processes that torchrun or accelerate launch has started: joining them, what the first of them says, what each has.

Only plain objects travel here, over gloo, or over the group that a program has made itself. A process that fails ends,
and does not wait for the others: torchrun then stops them, and without it their next exchange over gloo fails, since
that notices that a connection is closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

_T = TypeVar("_T")
_MEET = timedelta(minutes=10)  # until all have come
_LOOK = 0.2  # seconds between two looks at a lock
_WAIT = timedelta(days=7)  # of one process for another's work
_TOLD = (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)  # what a command says in one line


def here() -> tuple[int, int]:
    """This process's number and their count; (0, 1) where ``torch.distributed`` is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined(device: str | None = None) -> Iterator[tuple[int, int]]:
    """Joins the processes of the launcher, and leaves them at the end; gives this one's number and their count.

    Without a launcher, or where ``torch.distributed`` is initialised already, nothing is done. Each process takes the
    accelerator of its number on the machine as the current one. Host memory is exchanged through gloo, CUDA memory
    through NCCL. One process may wait for another's work for days.

    Args:
        device: the one asked for, as in :func:`gru_fast.models.device_of`.

    Raises:
        ValueError: more processes than accelerators on this machine, or one of these for all of them.
        torch.distributed.DistError: not all processes have come within minutes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield here()
        return
    kind = _take_accelerator(device, world)
    # The meeting by itself: init_process_group would give it the time that is given to work.
    store, rank, _ = next(rendezvous("env://", timeout=_MEET))
    backends = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    with _the_others_named(world):  # one that fails at once may take down what the others connect to
        dist.init_process_group(backends, store=store, rank=rank, world_size=world, timeout=_WAIT)
    yield here()
    # Not where something was raised: NCCL might wait for those that do not know of it yet.
    dist.destroy_process_group()


def _take_accelerator(device: str | None, world: int) -> str | None:
    """Makes this process's accelerator the current one. Returns its kind; None: the CPU is to be used."""
    asked, _, index = (device or "").partition(":")
    if index:
        raise ValueError(
            f'device: expected none, or one without a number, for {world} processes, got "{device}"; each takes the '
            "one of its own number"
        )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or asked not in ("", found.type):
        return None
    own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if own >= count:
        raise ValueError(
            f"device: expected an accelerator for each process on this machine, got {count} for "
            f"{os.environ.get('LOCAL_WORLD_SIZE', world)}; start fewer (torchrun --nproc-per-node {count}), or give "
            "--device cpu"
        )
    torch.accelerator.set_device_index(own)
    return found.type


def gather(value: _T) -> list[_T]:
    """What each process has given, in the order of their numbers. Every process must call it, as all below."""
    _, world = here()
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    with _the_others_named(world):
        dist.all_gather_object(found, value)
    return found


def wait_for_all() -> None:
    """Returns when every process has come here."""
    gather(None)


def on_first(work: Callable[[], _T]) -> _T:
    """What ``work`` returns in the first process, for all of them; the others wait. So with an error that it raises.

    For what must be done once, such as writing a file, and for what all must see alike, such as which files are there.
    """
    rank, world = here()
    if world == 1:
        return work()
    told: list[Any] = [None, None]  # result, error
    if rank == 0:
        try:
            told[0] = work()
        except _TOLD as error:
            told[1] = error
    own = told[1]
    if own is not None:
        told[1] = _plain(own)
    with _the_others_named(world):
        dist.broadcast_object_list(told)
    if told[1] is not None:
        raise own or told[1]
    return told[0]


@contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """One process, or one command of several processes, in such a block at a time; the others wait.

    Every process of a command must come here.
    """
    from filelock import FileLock

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))

    def take() -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()

    on_first(take)
    try:
        yield
    finally:
        lock.release()  # where it is not held, nothing


def _plain(error: BaseException) -> BaseException:
    """The error as one of Python's own: a library's need not be what it was after a journey."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return error if kind is type(error) else kind(str(error))


@contextmanager
def _the_others_named(world: int) -> Iterator[None]:
    """Says of an exchange that broke off whose fault it is: not this process's."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"another of the {world} processes has stopped, and says itself why; what was finished is kept, and the "
            f"same command goes on with the rest ({str(error).partition(chr(10))[0]})"
        ) from error


@contextmanager
def logged_to(path: Path, patience: float) -> Iterator[None]:
    """What this process writes on stdout and stderr goes to ``path``, libraries in C and C++ included.

    Meanwhile nobody else is in such a block for this path: its lock is held by this process and by every other one that
    it has started and that still writes there. So who was killed is waited for until what it had launched has ended.

    Raises:
        TimeoutError: another one has held it for ``patience`` seconds.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path}: another process still works on this") from None
                time.sleep(_LOOK)
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            file.flush()
            fcntl.flock(file, fcntl.LOCK_UN)
            for descriptor, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)
