"""What processes say to each other, seen from one of them; for test_processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gru_fast.runs import processes


class LibraryError(FileNotFoundError):
    """An error that cannot be made of its text alone, as those of huggingface_hub."""

    def __init__(self, text: str, *, response: str) -> None:
        super().__init__(text)
        self.response = response


ERRORS: dict[str, Callable[[], Any]] = {
    "value": lambda: int("x"),
    "file": lambda: Path("/nowhere/at/all").read_text(),
    "key": lambda: {}["x"],
    "package": lambda: __import__("no_such_package"),
    "json": lambda: json.loads("{"),
    "library": lambda: _raise(LibraryError("not there", response="404")),
}


def _raise(error: Exception) -> None:
    raise error


def counted() -> tuple[int, dict[str, int]]:
    """How often work was done in this process, and what came of it."""
    calls = []

    def work() -> dict[str, int]:
        calls.append(processes.here()[0])
        return {"from": processes.here()[0], "world": processes.here()[1]}

    found = processes.on_first(work)
    return len(calls), found


def told(name: str) -> tuple[str, str, str]:
    """Type, text and, of an ImportError, the package, of what a process is told of an error of the first; all go on."""
    try:
        processes.on_first(ERRORS[name])
    except (ImportError, LookupError, OSError, ValueError) as error:
        processes.wait_for_all()
        return type(error).__name__, str(error), str(getattr(error, "name", ""))
    return "", "", ""


def gathered() -> list[Any]:
    rank, _ = processes.here()
    return processes.gather({"rank": rank, "square": rank**2})


def left_alone() -> str:
    """The second process breaks down; what the others are told."""
    if processes.here()[0] == 1:
        return "gone"
    try:
        processes.wait_for_all()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def joined_already() -> tuple[int, int, bool]:
    """Inside a process group that somebody else has made; whether it is left alone."""
    import torch.distributed as dist

    with processes.joined() as (rank, world):
        pass
    return rank, world, dist.is_initialized()
