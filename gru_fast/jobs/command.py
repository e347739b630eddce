"""The commands of gru-fast, called from a job of a queue as a user would type them."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEVICES = "GRU_FAST_WORKER_DEVICES"  # variable: the GPUs of a worker's launched commands; it sees the first alone
_WEIGHTS = ("*.safetensors", "*.bin")
_STOP_SECONDS = 60  # until a launcher that was asked to stop is killed; torchrun gives its processes 30
_running: list[subprocess.Popen[bytes]] = []  # what this worker has launched: one, or nothing


@contextlib.contextmanager
def command(argv: Sequence[str]) -> Iterator[Any]:
    """The arguments of a command, whose work is ``args.run(args)``.

    Meanwhile it is what this process's command line says, for the record, and it is printed.
    """
    from gru_fast.cli import parse

    before = sys.argv
    sys.argv = ["gru-fast", *argv]
    sys.stdout.write(f"$ {shlex.join(sys.argv)}\n")
    sys.stdout.flush()
    try:
        yield parse(argv)
    finally:
        sys.argv = before


def launched(line: Sequence[str]) -> None:
    """Runs a command line that starts gru-fast by a launcher, such as torchrun's, on the GPUs of this worker.

    What it says goes to this process's stdout and stderr. It ends when this process does, however that ends.

    Raises:
        RuntimeError: it has failed. KeyboardInterrupt: this process was asked to stop; so was the launcher.
    """
    from gru_fast.jobs import tied

    sys.stdout.write(f"$ {shlex.join(line)}\n")
    sys.stdout.flush()
    devices = os.environ.get(DEVICES)
    process = subprocess.Popen(
        [sys.executable, tied.__file__, str(os.getpid()), *line],
        env={**os.environ, **({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})},
        start_new_session=True,
    )
    _running.append(process)
    try:
        status = process.wait()
    except BaseException:
        stop_launched()
        raise
    finally:
        _running.remove(process)
    if status != 0:
        raise RuntimeError(f"{line[0]} ended with exit status {status}; the log has its line and what it said")


def stop_launched() -> None:
    """Ends what :func:`launched` has started, and returns when it has ended."""
    for process in [process for process in _running if process.poll() is None]:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def delete_weights(run: Path) -> None:
    """Deletes the model of a run and its checkpoints; everything that says how it was made and how it scored stays."""
    for pattern in _WEIGHTS:
        for file in run.glob(pattern):
            file.unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
