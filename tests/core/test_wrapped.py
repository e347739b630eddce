"""RetainEMA with DistributedDataParallel and FSDP2: what each does with ``.grad``, against one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import wrapped
from processes import Processes

COLLECTORS = ("collect", "stream")


def assert_follows(found: list[Any], **settings: Any) -> None:
    """Statistics alike in all processes; those, weights and e as of one process with all the rows."""
    stats, weights, ema = wrapped.unlearned(None, **settings)
    assert any(entry[10] for entry in stats), "a test of the projection needs a conflict"
    for other, *_ in found:
        assert np.array_equal(other, found[0][0])
    np.testing.assert_allclose(found[0][0], stats, rtol=2e-5, atol=1e-7)
    start = list(wrapped.network().parameters())
    for a, b, w in zip(found[0][1], weights, start, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float((b - w).detach().norm()) + 1e-8
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm()) + 1e-8


@pytest.mark.parametrize(
    ("how", "micro"),
    [("ddp", 1), ("ddp", 3), ("ddp view", 1), ("ddp view", 3), ("ddp view static", 1)],  # static is not for no_sync
)
@pytest.mark.parametrize("forget_first", [False, True])
def test_ddp(processes: Processes, how: str, micro: int, forget_first: bool) -> None:
    """Both backward passes reduce as usual, also in the last of several micro-batches, in either order."""
    settings = {"micro": micro, "forget_first": forget_first}
    assert_follows(processes.run(wrapped.unlearned, 2, how, **settings), **settings)


@pytest.mark.parametrize("how", ["ddp view", "fsdp", "hsdp"])
def test_shares_of_the_retain_gradient(processes: Processes, how: str) -> None:
    settings = {"share": 0.7, "micro": 2}
    assert_follows(processes.run(wrapped.unlearned, 4, how, **settings), **settings)


@pytest.mark.parametrize(
    ("how", "world", "collector"),
    [
        *((how, world, c) for how, world in (("fsdp", 3), ("hsdp", 4), ("fsdp offloaded", 2)) for c in COLLECTORS),
        ("fsdp with plain", 2, "collect"),  # stream would see the plain ones before they are averaged
    ],
)
def test_fsdp2(processes: Processes, how: str, world: int, collector: str) -> None:
    assert_follows(processes.run(wrapped.unlearned, world, how, collector))


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize("forget_first", [False, True])
def test_fsdp2_with_micro_batches(processes: Processes, collector: str, forget_first: bool) -> None:
    settings = {"micro": 3, "forget_first": forget_first}
    assert_follows(processes.run(wrapped.unlearned, 3, "fsdp", collector, **settings), **settings)


def test_bucket_views_are_not_kept(processes: Processes) -> None:
    assert processes.run(wrapped.kept_gradients_are_their_own, 2) == [True, True]


def test_stream_under_ddp_is_refused(processes: Processes) -> None:
    for said in processes.run(wrapped.streamed_under_ddp, 2):
        assert said.startswith("stream(): expected each gradient once, but something put gradients back")
        assert "use collect(), or stream() within its no_sync()" in said


@pytest.mark.parametrize("collector", COLLECTORS)
def test_gradients_that_stay_in_the_module_are_refused(processes: Processes, collector: str) -> None:
    for said in processes.run(wrapped.without_sync, 2, collector):
        assert said.startswith(f"{collector}(): expected backward to give the sharded parameters gradients")
        assert "set_requires_gradient_sync(True)" in said
