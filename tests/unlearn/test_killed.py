"""One of several processes is killed, anywhere: the run goes on from its last whole checkpoint and ends as if not."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import launched
import pytest
from processes import Processes

from gru_fast.unlearn.checkpoint import is_whole, last_checkpoint

FEW = {"save_total_limit": 1}


@pytest.fixture(scope="module")
def unbroken(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """What runs that nobody kills end with, under DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {f: processes.run(launched.run_to_the_end, 2, folder / str(f), f, **FEW) for f in (False, True)}


@pytest.mark.parametrize(
    ("fsdp2", "rank", "moment"),
    [
        (False, 1, "step"),
        (False, 1, "random numbers"),
        (False, 0, "rotation"),
        (True, 1, "step"),
        (True, 1, "shards of e"),
        (True, 0, "trainer state"),
    ],
)
def test_killed_and_resumed(
    processes: Processes, unbroken: dict[bool, Any], tmp_path: Path, fsdp2: bool, rank: int, moment: str
) -> None:
    """With one checkpoint kept at a time. Bit for bit the weights and e of an unbroken run."""
    doomed = Processes(2)
    try:
        codes = doomed.run_until_one_dies(launched.killed, 2, tmp_path, fsdp2, rank, moment, **FEW)
    finally:
        doomed.close()
    assert codes[rank] == -signal.SIGKILL
    found = {path.name: is_whole(path) for path in tmp_path.glob("checkpoint-*")}
    halfway = {} if moment == "step" else {"checkpoint-4": moment == "rotation"}
    assert found == {"checkpoint-2": True, **halfway}
    assert last_checkpoint(tmp_path).name == ("checkpoint-4" if moment == "rotation" else "checkpoint-2")
    resumed = processes.run(launched.run_to_the_end, 2, tmp_path, fsdp2, resume=True, **FEW)
    for ours, theirs in zip(resumed, unbroken[fsdp2], strict=True):
        assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))
    assert [path.name for path in tmp_path.glob("checkpoint-*") if is_whole(path)] == ["checkpoint-6"]
