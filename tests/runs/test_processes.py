"""Processes of a launcher: what the first says, all hear; what one does not live to say, nobody waits for."""

from __future__ import annotations

import exchanges
import pytest
import torch
from processes import Processes

from gru_fast.runs import processes as ours


def test_alone() -> None:
    assert ours.here() == (0, 1)
    assert ours.gather("x") == ["x"]
    ours.wait_for_all()
    assert ours.on_first(lambda: 3) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        ours.on_first(exchanges.ERRORS["value"])
    with ours.joined("cuda:1") as found:  # alone it may be any
        assert found == (0, 1)


def test_the_first_does_the_work_and_all_have_the_result(processes: Processes) -> None:
    result = {"from": 0, "world": 3}
    assert processes.run(exchanges.counted, 3) == [(1, result), (0, result), (0, result)]


OF_FIRST = {
    "value": "ValueError", "file": "FileNotFoundError", "key": "KeyError", "json": "JSONDecodeError",
    "package": "ModuleNotFoundError", "library": "LibraryError",
}  # fmt: skip


@pytest.mark.parametrize("name", exchanges.ERRORS)
def test_an_error_of_the_first_is_everybodys(processes: Processes, name: str) -> None:
    first, *others = processes.run(exchanges.told, 3, name)
    as_pythons = {"library": "FileNotFoundError", "json": "ValueError"}
    assert first[0] == OF_FIRST[name]
    for kind, *rest in others:
        assert kind == as_pythons.get(name, first[0])
        assert (*rest,) == first[1:]


def test_gathering(processes: Processes) -> None:
    expected = [{"rank": rank, "square": rank**2} for rank in range(3)]
    assert processes.run(exchanges.gathered, 3) == [expected] * 3


def test_nobody_waits_for_a_process_that_has_stopped(processes: Processes) -> None:
    first, gone, third = processes.run(exchanges.left_alone, 3)
    assert gone == "gone"
    for said in (first, third):
        assert said.startswith("another of the 3 processes has stopped, and says itself why; what was finished is kept")


def test_a_group_that_is_there_is_joined_and_left_as_it_is(processes: Processes) -> None:
    assert processes.run(exchanges.joined_already, 2) == [(0, 2, True), (1, 2, True)]


# ---- accelerators ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs, as torch sees it; the ones that were chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    return chosen


@pytest.mark.parametrize("device", [None, "cuda"])
def test_each_process_takes_the_accelerator_of_its_number(
    two_devices: list[int], monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ours._take_accelerator(device, 3) == "cuda"
    assert two_devices == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match=r"^device: expected an accelerator for each process on this machine, got 2 for 3; start fewer"
    ):
        ours._take_accelerator(device, 3)
    assert two_devices == [1]


def test_the_cpu_is_for_all(two_devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert ours._take_accelerator("cpu", 3) is None
    assert two_devices == []


def test_one_accelerator_is_not_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = (
        r'^device: expected none, or one without a number, for 2 processes, got "cuda:1"; each takes the one of its own'
    )
    with pytest.raises(ValueError, match=said), ours.joined("cuda:1"):
        pass
