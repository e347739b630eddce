"""The commands of gru-fast, called from a job as a user would type them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

Parse = Callable[[Sequence[str]], Namespace]  # the command line's; the work of a command is then args.run(args)

_STOP_SECONDS = 60  # until a launcher that was asked to stop is killed; torchrun gives its processes 30


@contextlib.contextmanager
def command(argv: Sequence[str], parse: Parse) -> Iterator[Namespace]:
    """The arguments of a command. Meanwhile it is what this process's command line says, and it is printed."""
    before = sys.argv
    sys.argv = ["gru-fast", *argv]
    _show(sys.argv)
    try:
        yield parse(argv)
    finally:
        sys.argv = before


def launched(line: Sequence[str]) -> None:
    """Runs a command line that starts gru-fast by a launcher, such as torchrun's, on the GPUs of this job.

    What it says goes to this process's stdout and stderr. It ends when this process does, however that ends.

    Raises:
        RuntimeError: it has failed.
    """
    from gru_fast.runs import tied

    _show(line)
    process = subprocess.Popen([sys.executable, tied.__file__, str(os.getpid()), *line], start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        _stop(process)
        raise
    if status != 0:
        raise RuntimeError(f"{line[0]} ended with exit status {status}; the log has its line and what it said")


def _show(line: Sequence[str]) -> None:
    sys.stdout.write(f"$ {shlex.join(line)}\n")
    sys.stdout.flush()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher, and returns when it has ended."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
