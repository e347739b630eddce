"""What the host launches on a GPU for one step: how many kernels, how many blocks, how many bytes of parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensors import make_problem
from torch import Tensor

from gru_fast.core.backends.adamw import AdamWArgs, AdamWRows
from gru_fast.core.backends.native import NativeAdamW, NativePasses
from gru_fast.core.backends.passes import Groups, Rows, StepArgs
from gru_fast.core.load import core

EMULATION: Any = getattr(core, "emulation", None)

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(EMULATION is None, reason="the host of the CPU launches nothing; .ci/emulate runs this"),
]

ROW_BYTES, TABLE_HEADER_BYTES, MAX_ARGS_BYTES = 40, 16, 128
MULTIPROCESSORS, BLOCKS_PER_MULTIPROCESSOR = 2, 4  # of the emulated device
CHUNK = 16384


def launches(num_rows: int, numel: int, *, all_or_nothing: bool = False) -> list[tuple[int, int]]:
    """(blocks, bytes of parameters) of each launch of a step with a conflict."""
    grads: list[Tensor | None] = [-torch.ones(numel) for _ in range(num_rows)]
    retain: list[Tensor | None] = [torch.ones(numel) for _ in range(num_rows)]
    passes = NativePasses(Rows(grads, retain, [torch.ones(numel) for _ in range(num_rows)]))
    EMULATION.take_launched()
    passes.step(StepArgs(0.5, 0.5, all_or_nothing=all_or_nothing), torch.zeros(1, dtype=torch.int64))
    launched: list[tuple[int, int]] = EMULATION.take_launched()
    return launched


def test_a_step_is_four_launches_and_nothing_besides() -> None:
    """reduce, total, apply, finish; check before them where a step is all or nothing. The emulation has no memset."""
    assert len(launches(3, 8)) == 4
    assert len(launches(3, 8, all_or_nothing=True)) == 5


def test_other_passes() -> None:
    passes = NativePasses(Rows([torch.ones(8)], [torch.ones(8)], [torch.ones(8)]))
    EMULATION.take_launched()
    passes.fold(StepArgs(0.5, 0.5), None)
    assert len(EMULATION.take_launched()) == 2  # reduce, total
    passes.reduce(StepArgs(0.5, 0.5), None)
    passes.apply(StepArgs(0.5, 0.5))
    passes.finish(StepArgs(0.5, 0.5))
    assert len(EMULATION.take_launched()) == 5  # |g|^2 is added up before finish: other devices may have more of it
    param, grad, m, v = ([torch.ones(8)] for _ in range(4))
    scalars = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.0, 0.1, 0.03, 1.0]], dtype=torch.float64)
    NativeAdamW(AdamWRows(param, [*grad], m, v)).run("step", AdamWArgs(scalars))
    assert len(EMULATION.take_launched()) == 1


@pytest.mark.parametrize(
    ("num_rows", "table_bytes"),
    [(1, 512), (12, 512), (13, 3968), (98, 3968), (99, 32636), (815, 32636)],
)
def test_a_launch_copies_the_smallest_table_that_holds_its_rows(num_rows: int, table_bytes: int) -> None:
    assert TABLE_HEADER_BYTES + num_rows * ROW_BYTES <= table_bytes
    # The compiler rounds a table down to whole rows.
    whole_bytes = TABLE_HEADER_BYTES + (table_bytes - TABLE_HEADER_BYTES) // ROW_BYTES * ROW_BYTES
    for _, size in launches(num_rows, 1):
        assert whole_bytes < size <= whole_bytes + MAX_ARGS_BYTES


def test_one_row_too_many_takes_a_launch_more_of_each_kernel() -> None:
    """Of the large table one, of the small one the other."""
    sizes = [size for _, size in launches(816, 1)]
    assert len(sizes) == 8
    assert sorted(size > 32000 for size in sizes) == [False] * 4 + [True] * 4
    assert sorted(size < 512 + MAX_ARGS_BYTES for size in sizes) == [False] * 4 + [True] * 4


def test_kernels_that_nearly_always_have_nothing_to_do_start_a_block_for_each_multiprocessor() -> None:
    reduce, total, apply, finish = (blocks for blocks, _ in launches(1, 100 * CHUNK))
    assert reduce == apply == MULTIPROCESSORS * BLOCKS_PER_MULTIPROCESSOR
    assert total == finish == MULTIPROCESSORS


def test_no_more_blocks_than_chunks() -> None:
    assert [blocks for blocks, _ in launches(1, 3 * CHUNK)] == [3, 2, 3, 2]
    assert [blocks for blocks, _ in launches(1, 8)] == [1, 1, 1, 1]


@pytest.mark.parametrize("byte", [0x00, 0x5A, 0xFF])
@pytest.mark.parametrize("all_or_nothing", [False, True])
@pytest.mark.parametrize("how", ["step", "parts", "groups"])
@pytest.mark.parametrize("scale", [1.0, 1e25])  # whose squares float32 cannot hold: a second set of sums
def test_no_pass_minds_what_was_in_scratch_and_statistics(
    scale: float, how: str, all_or_nothing: bool, byte: int
) -> None:
    """As after a launch that was given up, or in a replay of a graph whose memory has served others in between."""
    args = StepArgs(keep=0.5, gain=0.5, tau=1.0, all_or_nothing=all_or_nothing)
    outcomes = []
    for filling in (0x33, byte):
        problem = make_problem(("f32", "bf16", "bf16-f32"), seed=3, grad_scale=scale, ema_scale=scale)
        of_row = [row % 3 for row in range(len(problem.grads))]
        is_grouped = how == "groups"
        rows = Rows(problem.grads, problem.retain, problem.ema, groups=of_row if is_grouped else None, num_groups=5)
        passes, groups, counter = NativePasses(rows), Groups(of_row, 5), torch.tensor([7])
        for memory in (passes._scratch, passes.stats.view(torch.uint8), groups.stats.view(torch.uint8)):
            memory.fill_(filling)
        if how == "step":
            passes.step(args, counter)
        elif is_grouped:
            passes.reduce(args, counter)
            passes.reduce_groups(groups)
            passes.apply_groups(args, groups)
            passes.finish_groups(args, groups)
        else:
            passes.reduce(args, counter)
            passes._scratch.fill_(filling)  # apply takes nothing from reduce but the statistics
            passes.apply(args)
            passes._scratch.fill_(filling)
            passes.finish(args)
        assert int(counter) == 8
        assert passes.stats[14] == (scale > 1.0)
        assert math.isfinite(float(passes.stats[9]))  # |g|^2 afterwards
        written = [*problem.ema, *(g for g in problem.grads if g is not None)]
        told = [passes.stats[:15], *([groups.stats] if is_grouped else [])]
        outcomes.append([t.reshape(-1).view(torch.uint8) for t in (*told, *written)])
    assert all(map(torch.equal, *outcomes))
