"""Sharded parameters: every layout follows one process, all processes decide alike, and a few numbers are exchanged."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from processes import Processes

from gru_fast.core.sharded import rows as sharded_rows
from gru_fast.core.sharded.rows import ShardedRows, hooks_wait_for_copies
from gru_fast.core.sharded.shards import check_param

WORLDS = {
    "fsdp": (2, 3, 4),
    "hsdp": (4,),
    "tensor parallel": (2, 3),
    "fsdp and tensor parallel": (4,),
    "replicated": (2,),
    "mixed with plain": (2, 3),
    "hsdp with plain": (4,),
    "experts": (4,),
}
CASES = [(layout, world) for layout, worlds in WORLDS.items() for world in worlds]


def assert_alike(found: list[layouts.Found]) -> None:
    """All processes have the same statistics, bit for bit, and copies of one shard are the same bits."""
    for other in found[1:]:
        assert np.array_equal(other.stats, found[0].stats, equal_nan=True)  # alpha and beta of groups
    for step in range(len(found[0].parts)):
        seen: dict[Any, torch.Tensor] = {}
        for process in found:
            for (what, row), values in process.parts[step].items():
                known = seen.setdefault((what, row, process.places[row]), values)
                assert torch.equal(known, values), f"step {step}, {what}[{row}]: copies differ"


def assert_follows(found: layouts.Found, expected: layouts.Found, rtol: float = 2e-6) -> None:
    """Sums to 1e-6, tensors to ``rtol`` of their norm."""
    for step, (a, b) in enumerate(zip(found.stats, expected.stats, strict=True)):
        np.testing.assert_allclose(a, b, rtol=3e-6, err_msg=f"statistics of step {step}")
    for name in ("ema", "grads"):
        for step, (ours, theirs) in enumerate(zip(getattr(found, name), getattr(expected, name), strict=True)):
            size = math.sqrt(sum(float(t.double().square().sum()) for t in theirs))
            for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                error = float((a.double() - b.double()).norm())
                assert error <= rtol * size, f"{name}[{row}] of step {step}: off by {error:.3g} of {size:.3g}"


@pytest.mark.parametrize(("layout", "world"), CASES)
@pytest.mark.parametrize("tau", [None, 2.0])
def test_every_layout_follows_one_process(processes: Processes, layout: str, world: int, tau: float | None) -> None:
    expected = layouts.rectified(None, tau=tau)
    found = processes.run(layouts.rectified, world, layout, torch.float32, None, tau)
    assert_alike(found)
    assert_follows(found[0], expected)
    names = ("conflict", "clipped")
    seen = [dict(zip(names, (stats[10], stats[11]), strict=True)) for stats in expected.stats]
    assert [entry["conflict"] for entry in seen] == [1.0, 0.0, 1.0]
    assert all(entry["clipped"] == (tau is not None) for entry in seen)


@pytest.mark.parametrize(("layout", "world"), [("mixed with plain", 3), ("experts", 4), ("hsdp with plain", 4)])
@pytest.mark.parametrize("partial", [False, True])
def test_several_retain_sets(processes: Processes, layout: str, world: int, partial: bool) -> None:
    expected = layouts.rectified(None, how="sets")
    found = processes.run(layouts.rectified, world, layout, torch.float32, None, 2.0, "sets", partial)
    assert_alike(found)
    assert_follows(found[0], expected)
    assert [stats[10] for stats in expected.stats] == [1.0, 1.0, 1.0]


def test_all_processes_keep_a_gradient_or_none(processes: Processes) -> None:
    assert (
        processes.run(layouts.kept_nan, 2)
        == [
            ("keep: expected a gradient of finite numbers, got NaN or Inf", 0),
        ]
        * 2
    )


@pytest.mark.parametrize(("layout", "world"), [("mixed with plain", 3), ("experts", 4), ("hsdp", 4)])
@pytest.mark.parametrize("how", ["list", "measure", "direct", "tensors", "sago", "sago direct"])
def test_plain_sequences_and_measure(processes: Processes, layout: str, world: int, how: str) -> None:
    expected = layouts.rectified(None, how=how)
    found = processes.run(layouts.rectified, world, layout, torch.float32, None, 2.0, how)
    assert_alike(found)
    assert_follows(found[0], expected)


@pytest.mark.parametrize(("layout", "world"), [("tensor parallel", 3), ("fsdp and tensor parallel", 4)])
@pytest.mark.parametrize("how", ["object", "collect", "list", "direct"])
def test_partial_gradients_are_summed_first(processes: Processes, layout: str, world: int, how: str) -> None:
    found = processes.run(layouts.rectified, world, layout, torch.float32, None, 2.0, how, True)
    assert_alike(found)
    assert_follows(found[0], layouts.rectified(None, how=how), rtol=5e-6)


@pytest.mark.parametrize(("layout", "world"), [("fsdp", 3), ("hsdp with plain", 4), ("mixed with plain", 2)])
def test_sixteen_bit_rounding_is_the_same_in_all_copies_and_runs(processes: Processes, layout: str, world: int) -> None:
    """A 16-bit e: copies in several processes stay equal bit for bit, and so does a second run."""
    job = (layout, torch.bfloat16, torch.bfloat16, 2.0)
    found, again = (processes.run(layouts.rectified, world, *job) for _ in range(2))
    assert_alike(found)
    for first, second in zip(found, again, strict=True):
        assert first.stats == second.stats
        for a, b in zip(first.parts, second.parts, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    exact = layouts.rectified(None, torch.bfloat16)
    for ours, theirs in zip(found[0].ema, exact.ema, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.all((a.float() - b).abs() <= 2.0**-6 * b.abs() + 2.0**-7), "more than a few places of bfloat16"


def test_shards_are_rounded_with_bits_of_their_own() -> None:
    """The same values in two shards must not be rounded alike, or their errors would add up."""
    from gru_fast.core.backends.reference import rounding_bits
    from gru_fast.core.sharded.shards import rounding_key

    plain = torch.ones(4)
    assert rounding_key(plain, 3, 10) == 3
    assert not torch.equal(rounding_bits(64, 0, 0, 3), rounding_bits(64, 0, 0, 13))


@pytest.mark.parametrize(
    ("where", "how", "flags", "moved"),
    [
        ("grad", "plain", (True, True, False), True),
        ("grad", "scale", (True, True, False), False),
        ("retain", "plain", (False, True, True), True),
        ("retain", "scale", (True, True, False), False),
        ("retain", "stream", (False, True, True), True),
    ],
)
def test_all_processes_hear_of_nan(
    processes: Processes, where: str, how: str, flags: tuple[bool, bool, bool], moved: bool
) -> None:
    """NaN in the shard of one process: all skip the step, or none; with a loss scale nothing is written anywhere."""
    for found in processes.run(layouts.nonfinite, 3, where, how):
        assert found["flags"] == flags
        assert found["moved"] == moved
        assert found["steps"] == 1
        if flags[0]:
            assert not found["grad changed"]


@pytest.mark.parametrize("where", ["grad", "retain"])
def test_all_processes_raise_together(processes: Processes, where: str) -> None:
    found = processes.run(layouts.nonfinite, 3, where, "raise")
    for process, answer in enumerate(found):
        expected = f'{where}s[1] "second": 1 of 2' if where == "grad" else 'retain_grads[1] "second": 1 of 2'
        assert (expected if process == 1 else "or in the shards of another process, which then names them") in answer[
            "said"
        ]
        assert not answer["moved"]
        assert not answer["grad changed"]


def test_a_gradient_exactly_opposite_vanishes_everywhere(processes: Processes) -> None:
    assert processes.run(layouts.degenerate, 2) == [(True, False, 0.0)] * 2


@pytest.mark.parametrize("tau", [1e-3, 1e-5])
def test_the_norm_is_kept_near_cos_minus_one(processes: Processes, tau: float) -> None:
    """Where u - d^2/m cancels, what was written is asked for over all processes."""
    for said, found in processes.run(layouts.near_opposite, 2, tau):
        assert found <= tau * (1 + 1e-3)
        assert said == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    ("layout", "world", "conflict", "tau", "expected"),
    [
        ("fsdp", 2, False, None, 1),  # nothing to write: the sums alone
        ("fsdp", 2, True, None, 2),
        ("fsdp", 2, False, 1.0, 2),
        ("hsdp with plain", 4, False, None, 1),
        ("fsdp and tensor parallel", 4, True, 1.0, 2),
        ("experts", 4, False, None, 3),  # three sets of processes
    ],
)
def test_a_step_takes_one_all_reduce_of_a_few_numbers(
    processes: Processes, layout: str, world: int, conflict: bool, tau: float | None, expected: int
) -> None:
    assert processes.run(layouts.collectives, world, layout, conflict, tau) == [expected] * world


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process has nobody to meet
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_by_four_and_loaded_by_fewer(processes: Processes, tmp_path: Path, dtype: torch.dtype) -> None:
    """torch.distributed.checkpoint: the same e, bit for bit, and what else belongs to it."""
    saved, *others = processes.run(layouts.kept, 4, tmp_path / "ema", "save", dtype)
    assert [bool(e.any()) for e in saved[0]] == saved[1] == [True, True, False]
    loaded = [*processes.run(layouts.kept, 2, tmp_path / "ema", "load", dtype)]
    loaded.append(layouts.kept(tmp_path / "ema", "load", dtype))
    for e, seen, numbers in [*others, *loaded]:
        assert all(torch.equal(a, b) for a, b in zip(e, saved[0], strict=True))
        assert (seen, numbers) == saved[1:]
        assert numbers[:2] == [2, 3]


def test_what_cannot_be_worked_on_is_refused(processes: Processes) -> None:
    found = processes.run(layouts.refusals, 3)
    expected = [
        'ValueError: params[0] "layer.weight": expected a DTensor that is sharded or replicated, got placements (P',
        "fine",
        "ValueError: ema[0]: expected the placements of its parameter, (Shard(dim=0),), got a plain tensor",
        "ValueError: ema[0]: expected the placements of its parameter, (Shard(dim=0),), got (Replicate(),)",
        "TypeError: retain_grads[0]: expected a DTensor as its parameter, got a plain tensor of (6,)",
        "RuntimeError: collect(): expected backward to give the sharded parameters gradients, but none changed",
        "TypeError: ema[1]: expected float32 or the gradient's float32, got bfloat16",  # in every process number 1
    ]
    for process, said in enumerate(found):
        for text, start in zip(said, expected, strict=True):
            if start == "fine" and process == 2:
                assert text.startswith("ValueError: params[0]: expected a DTensor on a mesh that this process is part")
            else:
                assert text.startswith(start)


def test_parameters_that_others_keep_are_refused() -> None:
    deepspeed = torch.nn.Parameter(torch.ones(2))
    deepspeed.ds_id = 0  # as ZeRO marks its own
    with pytest.raises(
        TypeError,
        match=r"params\[0\]: expected a parameter with its gradient in .*ZeRO; FSDP2 .*trainers work with ZeRO",
    ):
        check_param(deepspeed, "params[0]")
    flat = torch.nn.Parameter(torch.ones(2))
    flat._is_flat_param = True
    with pytest.raises(TypeError, match="expected one parameter, got FSDP's FlatParameter of many; FSDP2"):
        check_param(flat, "params[0]")


# ---- streams of offloaded shards -------------------------------------------------------------------------------------


def offloaded(device_type: str, is_pinned: bool) -> ShardedRows:
    """A parameter whose shards lie on the host, computed with on another device: here there is none."""
    shard = SimpleNamespace(is_pinned=lambda: is_pinned)
    found = ShardedRows([], ["layer.weight"])
    found._sharded = {0: SimpleNamespace(device_mesh=SimpleNamespace(device_type=device_type), to_local=lambda: shard)}  # type: ignore[dict-item]
    return found


def test_streams_of_gradients_that_are_still_on_their_way_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 of torch 2.10 and 2.11 calls hooks while the copy to pinned memory goes on (pytorch 180666)."""
    monkeypatch.setattr(sharded_rows, "hooks_wait_for_copies", lambda: False)
    with pytest.raises(RuntimeError, match=r'stream\(\): params\[0\] "layer.weight" is offloaded .* collect\(\)'):
        offloaded("cuda", is_pinned=True).check_streams()
    offloaded("cuda", is_pinned=False).check_streams()
    offloaded("cpu", is_pinned=True).check_streams()
    monkeypatch.setattr(sharded_rows, "hooks_wait_for_copies", lambda: True)
    offloaded("cuda", is_pinned=True).check_streams()


def test_whether_hooks_wait_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version >= (2, 13) or version < (2, 12):
        assert hooks_wait_for_copies() == (version >= (2, 13))

    def foreach_reduce(param: Any) -> None:
        param.grad = param.grad.to("cpu", non_blocking=True)
        for hook in param._post_accumulate_grad_hooks.values():
            hook(param)

    monkeypatch.setattr(_fsdp_collectives, "foreach_reduce", foreach_reduce)
    assert not hooks_wait_for_copies.__wrapped__()
