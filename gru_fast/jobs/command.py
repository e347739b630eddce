"""The commands of gru-fast, called from a job of a queue as a user would type them."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_WEIGHTS = ("*.safetensors", "*.bin")


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


def delete_weights(run: Path) -> None:
    """Deletes the model of a run and its checkpoints; everything that says how it was made and how it scored stays."""
    for pattern in _WEIGHTS:
        for file in run.glob(pattern):
            file.unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
