"""Devices, backends and vector levels the tests run over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from processes import Processes

from gru_fast.core.backends import native, reference
from gru_fast.core.load import core

_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
if not torch.cuda.is_available():
    _DEVICES.pop()


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return torch.device(request.param)


@pytest.fixture(params=["native", "reference"])
def passes(request: pytest.FixtureRequest, device: torch.device) -> Callable[..., Any]:
    """Both backends, on every device they serve."""
    if request.param == "reference":
        return reference.ReferencePasses
    if not native.serves(device):
        pytest.skip(f"this build has no kernels for {device.type}")
    return native.NativePasses


@pytest.fixture(params=core.build_info()["available_levels"])
def vector_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every vector level this machine can run; the one in use before comes back."""
    before = core.build_info()["vector_level"]
    core.use_vector_level(request.param)
    yield request.param
    core.use_vector_level(before)


@pytest.fixture
def thread_count() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, which comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Four of them, for jobs that compute together."""
    started = Processes()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that `gru-fast eval` has loaded, in order."""
    from gru_fast.cli import evaluating

    found: list[str] = []
    load = evaluating.load

    def counted(options: Any, device: str | None) -> Any:
        found.append(options.model)
        return load(options, device)

    monkeypatch.setattr(evaluating, "load", counted)
    return found
