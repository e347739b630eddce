"""The two passes, compiled and in PyTorch: what they write, against the float64 oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import UNIT, assert_within, grid_neighbours
from tensors import (
    EMULATED,
    KIND_NAMES,
    KINDS,
    SMALL_SHAPES,
    TILE_SHAPES,
    Problem,
    bits_of,
    check_step,
    make_problem,
    shifted,
    take_step,
)
from torch import Tensor

from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.reference import ReferencePasses, rectified_gradient

Passes = Callable[..., Any]
MIXED = KIND_NAMES  # rows take turns
CLIP = {"clip": 0.5, "no clip": math.inf}  # tau, as a share of |g|


def tau_of(problem: Problem, clip: str) -> float:
    return CLIP[clip] * float(np.linalg.norm(problem.grad64()))


# ---- by hand ---------------------------------------------------------------------------------------------------------
# g, r, e, gamma, tau -> e, g. Worked out on paper; every value is exact in every dtype.

BY_HAND = {
    # e = (0, 1): d = -1, m = 1: g loses its second component.
    "projects": ([1, -1], [0, 2], [0, 0], 0.5, math.inf, [0, 1], [1, 0]),
    # A swapped gamma would give e = 0.25 * (8, 0) + 0.75 * (0, 8) = (2, 6).
    "weights r with gamma": ([1, 1], [0, 8], [8, 0], 0.25, math.inf, [6, 2], [1, 1]),
    # d = 1 > 0: nothing to do, a flipped sign would project.
    "leaves agreement alone": ([1, 2], [1, 0], [0, 0], 1.0, math.inf, [1, 0], [1, 2]),
    # d = -4, m = 8, beta = 0.5: g = (-3, 1) + 0.5 * (2, 2) = (-2, 2).
    "projects along a diagonal": ([-3, 1], [2, 2], [4, 4], 1.0, math.inf, [2, 2], [-2, 2]),
    # |g| = 5 > 2.5.
    "clips": ([3, 4], [1, 1], [1, 1], 0.5, 2.5, [1, 1], [1.5, 2]),
    "does not stretch": ([3, 4], [1, 1], [1, 1], 0.5, 8.0, [1, 1], [3, 4]),
    # First d = -8, m = 4: g = (6, -4) + 2 * (0, 2) = (6, 0); then 6 -> 3. Clipping first would give other numbers.
    "projects, then clips": ([6, -4], [0, 4], [0, 0], 0.5, 3.0, [0, 2], [3, 0]),
    # The old e alone would be agreement; the new one is not.
    "uses the new e": ([0, 1], [0, -2], [0, 1], 0.5, math.inf, [0, -0.5], [0, 0]),
    "no direction": ([1, -1], [0, 0], [0, 0], 0.5, math.inf, [0, 0], [1, -1]),
}


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(passes: Passes, device: torch.device, kind: str, case: str) -> None:
    g, r, e, gamma, tau, expected_e, expected_g = BY_HAND[case]
    grad_dtype, ema_dtype = KINDS[kind]
    grad, retain = (torch.tensor(v, dtype=grad_dtype, device=device) for v in (g, r))
    ema = torch.tensor(e, dtype=ema_dtype, device=device)
    take_step(passes, Problem([grad], [retain], [ema]), gamma, tau)
    assert ema.tolist() == expected_e
    assert grad.tolist() == expected_g


@pytest.mark.core
def test_all_parameters_are_one_vector(passes: Passes, device: torch.device) -> None:
    # d = -2 + 1 = -1 over both, m = 2: each alone would give (0, 1) or leave the second; together beta = 0.5.
    grads = [torch.tensor([-2.0], device=device), torch.tensor([1.0], device=device)]
    ema = [torch.ones(1, device=device), torch.ones(1, device=device)]
    result = take_step(passes, Problem(grads, None, ema), ema_is_current=True)
    assert [g.item() for g in grads] == [-1.5, 1.5]
    assert (result.dot, result.ema_norm_sq, result.grad_norm_sq) == (-1.0, 2.0, 5.0)
    assert (result.alpha, result.beta, result.conflict, result.clipped) == (1.0, 0.5, 1.0, 0.0)


def test_formula_of_the_reference() -> None:
    g, e = torch.tensor([6.0, -4.0]), torch.tensor([0.0, 2.0])
    assert rectified_gradient(g, e, tau=3.0).tolist() == [3.0, 0.0]
    assert rectified_gradient(-g, e).tolist() == [-6.0, 4.0]


# ---- against the oracle ----------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("present", ["all", "no r", "no g", "some", "e is current"])
@pytest.mark.parametrize("clip", CLIP)
@pytest.mark.parametrize("conflict", [True, False])
@pytest.mark.parametrize("kind", [*KIND_NAMES, "mixed"])
def test_step(passes: Passes, device: torch.device, kind: str, conflict: bool, clip: str, present: str) -> None:
    shapes = SMALL_SHAPES if kind != "mixed" else SMALL_SHAPES * 3  # every kind meets other shapes
    problem = make_problem(MIXED if kind == "mixed" else kind, shapes, device=device, conflict=conflict)
    assert problem.retain is not None
    if present == "no r":
        problem.retain = None
    elif present == "no g":
        problem.grads = [None if row % 3 == 0 else g for row, g in enumerate(problem.grads)]
    elif present == "some":
        problem.grads = [None if row % 4 == 2 else g for row, g in enumerate(problem.grads)]
        problem.retain = [None if row % 4 in (1, 2) else r for row, r in enumerate(problem.retain)]
    before, tau = problem.clone(), tau_of(problem, clip)
    is_current = present == "e is current"
    result = take_step(passes, problem, 0.3, tau, ema_is_current=is_current)
    outcome = check_step(before, problem, result, 0.3, tau, current=is_current)
    assert outcome.conflict == conflict, "the problem is not the one it should be"
    assert outcome.clipped == (clip == "clip")
    assert bool(result.clipped) == (clip == "clip")


@pytest.mark.parametrize("kind", [*KIND_NAMES, "mixed"])
def test_rows_of_many_tiles(passes: Passes, device: torch.device, kind: str) -> None:
    problem = make_problem(MIXED if kind == "mixed" else kind, TILE_SHAPES, device=device)
    before, tau = problem.clone(), tau_of(problem, "clip")
    result = take_step(passes, problem, 0.3, tau)
    check_step(before, problem, result, 0.3, tau)


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_length_to_70(passes: Passes, device: torch.device, kind: str) -> None:
    """All lengths around the blocks and runs of a vector kernel, one element into a buffer."""
    problem = make_problem(kind, [(n,) for n in range(71)], device=device)
    before, tau = problem.clone(), tau_of(problem, "clip")
    result = take_step(passes, problem, 0.3, tau)
    check_step(before, problem, result, 0.3, tau)


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("offset", range(4))
def test_neighbouring_memory_stays(device: torch.device, passes: Passes, kind: str, offset: int) -> None:
    grad_dtype, ema_dtype = KINDS[kind]
    for numel in (1, 31, 33, 257):
        buffers = [torch.full((numel + 8,), 7.0, dtype=d, device=device) for d in (grad_dtype, grad_dtype, ema_dtype)]
        grad, retain, ema = (b[offset : offset + numel] for b in buffers)
        grad.fill_(-1.0), retain.fill_(1.0), ema.fill_(2.0)
        grad[0] = 3.0
        take_step(passes, Problem([grad], [retain], [ema]), 0.5, 0.25)
        for what, buffer in zip("gre", buffers, strict=True):
            outside = torch.cat([buffer[:offset], buffer[offset + numel :]])
            assert torch.equal(outside, torch.full_like(outside, 7.0)), f"{what}: wrote outside of {numel} elements"


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_passes_one_by_one(device: torch.device, passes: Passes, kind: str) -> None:
    one, other = make_problem(kind, device=device), make_problem(kind, device=device)
    tau = tau_of(one, "clip")
    result = take_step(passes, one, 0.3, tau)
    made = passes(Rows(other.grads, other.retain, other.ema))
    args = StepArgs(0.7, 0.3, tau, seed=1234)
    made.reduce(args, torch.zeros(1, dtype=torch.int64, device=device))
    made.apply(args)
    made.finish(args)
    assert one.bits() == other.bits()
    assert made.stats[:14].tolist() == result.raw[:14].tolist()


@pytest.mark.core
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("kind", ["f32", "bf16-f32", "bf16"])
def test_sums_are_taken_again_where_float32_falls_short(
    device: torch.device, passes: Passes, kind: str, scale: float
) -> None:
    """stats[14] says so. At scale 1 a second pass would be thrown away."""
    result = take_step(passes, make_problem(kind, device=device, grad_scale=scale, ema_scale=scale), 0.3, math.inf)
    assert bool(result.raw[14]) == (passes is NativePasses and scale != 1.0)


@pytest.mark.core
@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_fold_is_reduce_without_the_sums(device: torch.device, passes: Passes, kind: str, spoilt: bool) -> None:
    found, again = [], []
    for fold in (False, True):
        problem = make_problem(kind, device=device)
        problem.grads = [None] * len(problem.ema)
        assert problem.retain is not None
        assert problem.retain[2] is not None
        if spoilt:
            problem.retain[2][3] = math.nan
        made = passes(Rows(problem.grads, problem.retain, problem.ema))
        count = torch.full((1,), 5, dtype=torch.int64, device=device)
        (made.fold if fold else made.reduce)(StepArgs(0.7, 0.3, seed=1234), count)
        found.append((problem.bits(), int(count), float(made.stats[3])))
        again.append(float(made.stats[14]))
    assert found[0] == found[1]
    assert found[0][1:] == (6, float(spoilt))
    assert again == [float(passes is NativePasses), 0.0], "sums that nobody reads were taken twice"


@pytest.mark.core
@pytest.mark.parametrize("which", ["g", "r", "e", "all"])
def test_layouts_in_memory(device: torch.device, passes: Passes, which: str) -> None:
    """Transposed tensors: alike they are worked on in place, otherwise by way of copies."""
    problem = make_problem("f32", [(5,), (12, 7)], device=device)
    assert problem.retain is not None
    before = problem.clone()

    def transposed(t: Tensor | None) -> Tensor:
        assert t is not None
        return t.T.contiguous().T

    if which in ("g", "all"):
        problem.grads[1] = transposed(problem.grads[1])
    if which in ("r", "all"):
        problem.retain[1] = transposed(problem.retain[1])
    if which in ("e", "all"):
        problem.ema[1] = transposed(problem.ema[1])
    result = take_step(passes, problem, 0.3, 1.0)
    check_step(before, problem, result, 0.3, 1.0)


@pytest.mark.core
def test_layouts_with_gaps(device: torch.device, passes: Passes) -> None:
    matrix = torch.arange(24.0, device=device).reshape(6, 4)
    problem = Problem([matrix[:, 0], matrix[:, 2]], None, [torch.ones(6, device=device) for _ in range(2)])
    untouched = matrix[:, [1, 3]].clone()
    before = problem.clone()
    result = take_step(passes, problem, 0.3, 1.0)
    check_step(before, problem, result, 0.3, 1.0)
    assert torch.equal(matrix[:, [1, 3]], untouched)


@pytest.mark.core
def test_nothing_at_all(device: torch.device, passes: Passes) -> None:
    problem = make_problem("f32", [(0,), (3, 0)], device=device)
    result = take_step(passes, problem, 0.5, 1.0)
    assert (result.dot, result.ema_norm_sq, result.grad_norm_sq) == (0.0, 0.0, 0.0)
    assert (result.alpha, result.beta, result.rescale) == (1.0, 0.0, 1.0)
    assert not any((result.conflict, result.clipped, result.degenerate, result.grad_nonfinite))


@pytest.mark.core
def test_ema_is_current_per_row(device: torch.device, passes: Passes) -> None:
    problem = make_problem("f32", [(9,), (9,)], device=device)
    assert problem.retain is not None
    before = problem.clone()
    take_step(passes, problem, 0.5, ema_is_current=[True, False])
    assert torch.equal(problem.ema[0], before.ema[0])
    assert before.retain is not None
    torch.testing.assert_close(problem.ema[1], 0.5 * before.ema[1] + 0.5 * before.retain[1])


# ---- levels, threads, order ------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("clip", CLIP)
@pytest.mark.parametrize("kind", [*KIND_NAMES, "mixed"])
def test_vector_levels(vector_level: str, kind: str, clip: str) -> None:
    shapes = [*SMALL_SHAPES, (1031,), (2048,)] * (2 if kind == "mixed" else 1)
    problem = make_problem(MIXED if kind == "mixed" else kind, shapes)
    before, tau = problem.clone(), tau_of(problem, clip)
    result = take_step(NativePasses, problem, 0.3, tau)
    check_step(before, problem, result, 0.3, tau)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_vector_levels_round_alike(vector_level: str, kind: str) -> None:
    """The rounding bits do not depend on the width of the vectors (nor does a fused multiply-add matter much)."""
    here, there = make_problem(kind, [(4099,), (65537,)]), make_problem(kind, [(4099,), (65537,)])
    take_step(NativePasses, here, 0.3)
    take_step(ReferencePasses, there, 0.3)
    assert_same_rounding(here.ema, there.ema)


def assert_same_rounding(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for a few elements, where float32 rounding of a value of order 1 crossed a boundary of the grid."""
    a, b = (torch.cat([t.double().flatten().cpu() for t in tensors]).numpy() for tensors in (found, expected))
    differs = a != b
    worst = int(np.abs(a - b).argmax())
    share = float(differs.mean())
    assert share < 1e-3, f"{share:.2%} differ, worst at {worst}: {a[worst]!r} and {b[worst]!r}"
    name = str(found[0].dtype).removeprefix("torch.")
    place = 2.01 * UNIT[name] * np.maximum(np.abs(a), np.abs(b)) + 8 * UNIT["float32"]
    assert_within(a, b, place, "more than one place")


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_native_against_reference(kind: str) -> None:
    native, plain = (make_problem(kind, TILE_SHAPES, seed=7) for _ in range(2))
    tau = tau_of(native, "clip")
    one = take_step(NativePasses, native, 0.3, tau, step=5, ids=list(range(3, 10)))
    two = take_step(ReferencePasses, plain, 0.3, tau, step=5, ids=list(range(3, 10)))
    if KINDS[kind][1] == torch.float32:
        for a, b in zip(native.ema, plain.ema, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    else:
        assert_same_rounding(native.ema, plain.ema)
    np.testing.assert_allclose(one.raw[:12], two.raw[:12], rtol=2e-4 if KINDS[kind][1] != torch.float32 else 2e-6)
    assert one.raw[10:14].tolist() == two.raw[10:14].tolist()


@pytest.mark.parametrize("kind", [*KIND_NAMES, "mixed"])
def test_threads_do_not_matter(thread_count: Callable[[int], None], kind: str) -> None:
    kinds = MIXED if kind == "mixed" else kind
    found = []
    for threads in (1, 2, 3, 2):
        thread_count(threads)
        problem = make_problem(kinds, TILE_SHAPES)
        result = take_step(NativePasses, problem, 0.3, 100.0)
        found.append((problem.bits(), result.raw[:14].tolist()))
    assert all(other == found[0] for other in found[1:])


@pytest.mark.core
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("kind", [*KIND_NAMES, "mixed"])
def test_runs_repeat(device: torch.device, passes: Passes, kind: str, offset: int) -> None:
    """Bit for bit. On the CPU wherever the tensors start; CUDA adds in another order where 16 bytes cannot be moved."""
    found = []
    for start in (offset, offset, *([0] if device.type == "cpu" and not EMULATED else [])):
        made = make_problem(MIXED if kind == "mixed" else kind, [*SMALL_SHAPES, (1031,)], device=device)
        lists = ([shifted(t, start) for t in tensors] for tensors in (made.grads, made.retain, made.ema))
        problem = Problem(*lists)
        result = take_step(passes, problem, 0.3, 1.0)
        found.append((problem.bits(), result.raw[:14].tolist()))
    assert all(other == found[0] for other in found[1:])


@pytest.mark.core
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_rounding_keys_are_not_ids(device: torch.device, passes: Passes, kind: str) -> None:
    """Bits are drawn by the key; without one by the id, which is what messages say."""

    def rounded(**names: list[int]) -> list[bytes]:
        problem = make_problem(kind, [(501,), (7,)], device=device)
        made = passes(Rows(problem.grads, problem.retain, problem.ema, **names))
        made.reduce(StepArgs(0.7, 0.3, seed=1234), torch.zeros(1, dtype=torch.int64, device=device))
        return problem.bits()

    assert rounded(ids=[4, 9]) == rounded(rounding_keys=[4, 9]) == rounded(ids=[1, 0], rounding_keys=[4, 9])
    assert rounded(ids=[4, 9]) != rounded(ids=[4, 9], rounding_keys=[2**31 - 1, 9])


@pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])
def test_messages_name_the_id(passes: Passes) -> None:
    ema = [torch.ones(3), torch.ones(3, dtype=torch.bfloat16)]
    names = {"ids": [4, 9], "rounding_keys": [104, 109]}
    with pytest.raises(TypeError, match=r"^ema\[9\]: expected float32 or the gradient.s .*float32, got .*bfloat"):
        passes(Rows([torch.ones(3), torch.ones(3)], None, ema, **names))
    with pytest.raises(TypeError, match=r"^retain_grads\[9\]: expected .*grads\[9\].*, got .*float16"):
        passes(
            Rows([torch.ones(3)] * 2, [torch.ones(3), torch.ones(3).half()], [torch.ones(3), torch.ones(3)], **names)
        )


def test_messages_name_the_id_of_shared_memory() -> None:
    shared = torch.ones(3)
    with pytest.raises(ValueError, match=r"^grads\[[49]\]: expected memory of its own, but it overlaps grads\[[49]\];"):
        NativePasses(Rows([shared, shared], None, [torch.ones(3), torch.ones(3)], ids=[4, 9], rounding_keys=[104, 109]))


@pytest.mark.parametrize("key", [-1, 2**31, 2**40])
def test_rounding_keys_have_31_bits(key: int) -> None:
    with pytest.raises(ValueError, match=rf"^rounding_keys\[0\]: expected a number from 0 to 2147483647, got {key}$"):
        NativePasses(Rows([torch.ones(3)], None, [torch.ones(3)], rounding_keys=[key]))


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_order_does_not_matter(device: torch.device, passes: Passes, kind: str) -> None:
    straight, turned = make_problem(kind, device=device), make_problem(kind, device=device)
    assert turned.retain is not None
    ids = list(range(len(turned.ema)))
    one = take_step(passes, straight, 0.3, 2.0, ids=ids)
    turned = Problem(turned.grads[::-1], turned.retain[::-1], turned.ema[::-1])
    two = take_step(passes, turned, 0.3, 2.0, ids=ids[::-1])
    assert [bits_of(e) for e in straight.ema] == [bits_of(e) for e in turned.ema[::-1]], "e"
    np.testing.assert_allclose(one.raw[:12], two.raw[:12], rtol=1e-6)
    unit = 2 * UNIT[str(KINDS[kind][0]).removeprefix("torch.")]
    for a, b in zip(straight.grads, turned.grads[::-1], strict=True):
        torch.testing.assert_close(a, b, rtol=2 * unit, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_stored_ema_is_a_neighbour_of_the_exact_one(device: torch.device, passes: Passes, kind: str) -> None:
    problem = make_problem(kind, [(5001,)], device=device)
    before = problem.clone()
    take_step(passes, problem, 0.25)
    exact = 0.75 * before.ema64() + 0.25 * before.retain64()  # exact weights
    below, above = grid_neighbours(exact, str(KINDS[kind][1]).removeprefix("torch."))
    stored = problem.ema64()
    off = (stored != below) & (stored != above)
    # float32 arithmetic may carry a value that lies next to a grid point across it
    assert off.mean() < 1e-3, f"{off.sum()} of {off.size}: {stored[off][:3]} for {exact[off][:3]}"
    assert (stored == below).any()
    assert ((stored == above) & (above != below)).any()
