"""The promises about numbers, one by one: sums, postconditions, NaN and Inf, scales, rounding, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracle import LARGEST, QUANTUM, UNIT, dot_product, grid_neighbours, rectify
from tensors import (
    BF16,
    EMULATED,
    F16,
    F32,
    KIND_NAMES,
    KINDS,
    Problem,
    bits_of,
    check_step,
    flat64,
    make_problem,
    shifted,
    take_step,
)
from torch import Tensor, nn

import gru_fast
from gru_fast import RetainEMA, rectify_
from gru_fast.core.backends import reference
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.load import core

Passes = Callable[..., Any]
SIXTEEN_BIT = ["bf16", "f16"]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def norm_of(tensors: Sequence[Tensor]) -> float:
    flat = flat64(tensors, tensors)
    return math.sqrt(dot_product(flat, flat))


def parameter(grad: Tensor | None, like: Tensor | None = None) -> nn.Parameter:
    base = grad if grad is not None else like
    assert base is not None
    param = nn.Parameter(torch.zeros_like(base))
    param.grad = grad
    return param


# ---- sums ------------------------------------------------------------------------------------------------------------


def assert_sums_of_constants(passes: Passes, numel: int, kind: str, value: float, device: torch.device) -> None:
    """g and e of one value each: every float32 rounding of a running sum goes the same way."""
    grad_dtype, ema_dtype = KINDS[kind]
    grad = torch.full((numel,), value, dtype=grad_dtype, device=device)
    ema = torch.full((numel,), 3.0 * value, dtype=ema_dtype, device=device)
    g, e = float(grad[0]), float(ema[0])
    made = passes(Rows([grad], None, [ema], ema_is_current=True))
    made.reduce(StepArgs(0.5, 0.5), None)
    found, expected = made.stats[:3].cpu().numpy(), np.array([g * e, e * e, g * g]) * numel
    error = np.abs(found / expected - 1.0)
    assert error.max() <= 1e-6, f"d, m, u: {found}, expected {expected}, relative error {error}"


@pytest.mark.parametrize("value", [0.1, -1.7])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_sums_of_3_million(device: torch.device, passes: Passes, kind: str, value: float) -> None:
    assert_sums_of_constants(passes, 3_000_001, kind, value, device)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_sums_at_every_level(vector_level: str, kind: str) -> None:
    assert_sums_of_constants(NativePasses, 1_000_003, kind, 0.1, torch.device("cpu"))


@pytest.mark.slow
def test_sums_of_28_million() -> None:
    assert_sums_of_constants(NativePasses, 28_311_552, "f32", 0.1, torch.device("cpu"))


@pytest.mark.core
@pytest.mark.parametrize("kind", SIXTEEN_BIT)
def test_sums_use_the_stored_ema(device: torch.device, passes: Passes, kind: str) -> None:
    dtype = KINDS[kind][0]
    retain = 1.0 + 2.0 * UNIT[name_of(dtype)] * torch.arange(64, device=device).double() / 64
    problem = Problem(
        [torch.ones(64, dtype=dtype, device=device)], [retain.to(dtype)], [torch.zeros(64).to(device, dtype)]
    )
    exact = 0.3 * problem.retain64()
    result = take_step(passes, problem, 0.3)
    stored = problem.ema64()
    assert abs(dot_product(exact, exact) / dot_product(stored, stored) - 1.0) > 1e-5, "cannot tell them apart"
    assert result.ema_norm_sq == pytest.approx(dot_product(stored, stored), rel=1e-6)
    assert result.dot == pytest.approx(stored.sum(), rel=1e-6)


# ---- postconditions --------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nothing_opposes_the_ema(device: torch.device, passes: Passes, kind: str) -> None:
    problem = make_problem(kind, [(5003,), (17, 31)], device=device)
    before = problem.clone()
    take_step(passes, problem, 0.3)
    grad, ema = problem.grad64(), problem.ema64()
    size = np.linalg.norm(grad) * np.linalg.norm(ema)
    before_dot = dot_product(before.grad64(), ema)
    assert before_dot < -0.3 * size, "no conflict: the test could not fail"
    # 16-bit rounding of g is random: its projection on e is some unit / sqrt(n) of |g||e|; 1e-6 is what the sums allow.
    unit = UNIT[name_of(KINDS[kind][0])]
    assert abs(dot_product(grad, ema)) <= size * (2e-6 + 5 * unit / math.sqrt(len(grad)))


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("numel", [1, 33, 1024, 70001])
def test_norm_is_within_tau_when_all_elements_round_up(
    device: torch.device, passes: Passes, kind: str, numel: int
) -> None:
    dtype = KINDS[kind][0]
    unit = UNIT[name_of(dtype)]
    for above in (0.1, 0.55, 0.95):  # of a place above a number on the grid; 0.55 rounds up by the most
        tau = math.sqrt(numel) * 0.5 * (1.0 + above * 2.0 * unit)
        grad = torch.ones(numel, dtype=dtype, device=device)
        problem = Problem([grad], None, [torch.ones(numel, dtype=KINDS[kind][1], device=device)])
        result = take_step(passes, problem, tau=tau, ema_is_current=True)
        norm = norm_of([grad])
        assert tau * (1.0 - 5.0 * unit - 1e-6) <= norm <= tau * (1.0 + 1e-3), f"|g| = {norm}, tau = {tau}"
        assert result.clipped


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("one_minus_cos", [1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
def test_norm_is_within_tau_near_anti_parallel(
    device: torch.device, passes: Passes, kind: str, one_minus_cos: float
) -> None:
    """u - d^2/m has lost all its digits here; what is left of g has not."""
    grad_dtype, ema_dtype = KINDS[kind]
    size = 501
    rest = 0.7 * math.sqrt(2.0 * one_minus_cos)
    ema = torch.cat([torch.full((size,), 0.3), torch.zeros(size)])
    grad = torch.cat([torch.full((size,), -0.7), torch.full((size,), rest)])
    left = math.sqrt(size) * float(grad[-1].to(grad_dtype))
    for share in (0.25, 0.99, 1.01, 4.0):
        problem = Problem([shifted(grad.to(device, grad_dtype))], None, [shifted(ema.to(device, ema_dtype))])
        outcome = rectify(problem.grad64(), problem.ema64(), share * left)
        assert outcome.conflict
        assert not outcome.degenerate, "not the case it should be"
        result = take_step(passes, problem, tau=share * left, ema_is_current=True)
        norm = norm_of(problem.ema[:0] + [g for g in problem.grads if g is not None])
        assert norm <= share * left * (1.0 + 1e-3), f"|g| = {norm}, tau = {share * left}"
        assert not result.degenerate
        if share < 1.0:
            assert result.clipped
            # Half of the elements carry what is left; rounding noise of the projection may be as large as that.
            assert norm >= share * left * (1.0 - 1e-3 - 5.0 * UNIT[name_of(grad_dtype)]) - 1e3 * QUANTUM["float16"]


@pytest.mark.core
@pytest.mark.parametrize("tau", [math.inf, 1e-3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_exactly_anti_parallel(device: torch.device, passes: Passes, kind: str, factor: float, tau: float) -> None:
    problem = make_problem(kind, [(333,), (8, 9)], device=device)
    grads = [g for g in problem.grads if g is not None]
    for g, e in zip(grads, problem.ema, strict=True):
        e.copy_(g)
        g.mul_(-factor)
    result = take_step(passes, Problem(grads, None, problem.ema), tau=tau, ema_is_current=True)
    assert norm_of(grads) == 0.0
    assert result.degenerate
    assert result.conflict
    assert result.out_norm_sq == 0.0


@pytest.mark.core
def test_degenerate_is_said(device: torch.device) -> None:
    e = torch.tensor([1.0, 2.0], device=device)
    param = parameter(-2.0 * e)
    step = rectify_([param], [e], 0.5)
    assert step.degenerate
    assert step.conflict
    assert step.cos == pytest.approx(-1.0)
    assert step.norm_after == 0.0
    assert not step.skipped


# ---- missing gradients -----------------------------------------------------------------------------------------------


@pytest.mark.core
def test_no_retain_gradient_decays_the_ema(device: torch.device) -> None:
    params = [parameter(torch.ones(5, device=device)) for _ in range(2)]
    ema = [torch.full((5,), 8.0, device=device) for _ in range(2)]
    rectify_(params, ema, 0.25, retain_grads=[None, torch.full((5,), 4.0, device=device)])
    assert ema[0].tolist() == [6.0] * 5
    assert ema[1].tolist() == [7.0] * 5


@pytest.mark.core
def test_missing_gradient_is_made_if_projected(device: torch.device) -> None:
    # d = -2, m = 2, beta = 1: the missing g becomes 0 + 1 * e.
    ema = [torch.ones(1, device=device), torch.ones(1, device=device)]
    params = [parameter(torch.full((1,), -2.0, device=device)), parameter(None, ema[1])]
    step = rectify_(params, ema, 0.5)
    assert [p.grad.tolist() for p in params] == [[-1.0], [1.0]]
    assert step.norm_after == pytest.approx(math.sqrt(2.0), rel=1e-6)


@pytest.mark.core
def test_missing_gradient_is_made_and_clipped() -> None:
    ema = [torch.ones(1), torch.ones(1)]
    params = [parameter(torch.full((1,), -2.0)), parameter(None, ema[1])]
    step = rectify_(params, ema, 0.5, tau=0.5)
    assert norm_of([p.grad for p in params if p.grad is not None]) == pytest.approx(0.5, rel=1e-6)
    assert step.clipped


@pytest.mark.core
def test_missing_gradient_stays_missing_without_conflict() -> None:
    params = [parameter(torch.ones(3)), parameter(None, torch.ones(3))]
    rectify_(params, [torch.ones(3), torch.ones(3)], 0.5, tau=0.1)
    assert params[1].grad is None
    assert params[0].grad is not None


@pytest.mark.core
def test_no_gradients_at_all() -> None:
    params = [parameter(None, torch.ones(3))]
    ema = [torch.zeros(3)]
    step = rectify_(params, ema, 0.5, tau=0.1, retain_grads=[torch.ones(3)])
    assert ema[0].tolist() == [0.5] * 3
    assert params[0].grad is None
    assert (step.norm_before, step.norm_after, step.conflict) == (0.0, 0.0, False)


# ---- NaN and Inf -----------------------------------------------------------------------------------------------------

NONFINITE = [math.nan, math.inf, -math.inf]
PLACES = [0, 17, 64, 1030]  # in vectors and in the rest


@pytest.mark.core
@pytest.mark.parametrize("bad", NONFINITE)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nonfinite_retain_gradient_stays_out(device: torch.device, passes: Passes, kind: str, bad: float) -> None:
    problem = make_problem(kind, [(1031,), (65,)], device=device)
    clean = problem.clone()
    assert problem.retain is not None
    assert problem.retain[0] is not None
    problem.retain[0][PLACES] = bad
    before = problem.clone()
    result = take_step(passes, problem, 0.3, 1.0)
    take_step(passes, clean, 0.3, 1.0)
    assert result.retain_nonfinite
    assert torch.equal(problem.ema[0][PLACES], before.ema[0][PLACES]), "a refused element of e changed"
    others = [i for i in range(1031) if i not in PLACES]
    assert torch.equal(problem.ema[0][others], clean.ema[0][others]), "a good element of e was not updated"
    assert torch.equal(problem.ema[1], clean.ema[1])
    check_step(before, problem, result, 0.3, 1.0)  # g is rectified as ever


@pytest.mark.core
@pytest.mark.parametrize("bad", NONFINITE)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nonfinite_retain_at_every_level(vector_level: str, kind: str, bad: float) -> None:
    for numel in (1, 15, 33, 300):
        for place in {0, numel // 2, numel - 1}:
            problem = make_problem(kind, [(numel,)])
            assert problem.retain is not None
            assert problem.retain[0] is not None
            problem.retain[0][place] = bad
            old = float(problem.ema[0][place])
            result = take_step(NativePasses, problem, 0.3)
            assert result.retain_nonfinite
            assert float(problem.ema[0][place]) == old
            assert np.isfinite(problem.ema64()).all()


def patterns(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the 65,536 numbers of 16 bits those that are finite, and those that are not."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    return every[every.isfinite()], every[~every.isfinite()]


@pytest.mark.core
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("offset", [0, 1])
def test_two_numbers_in_a_word_are_told_apart(offset: int, dtype: torch.dtype) -> None:
    """An all-or-nothing step looks for NaN and Inf in pairs: nothing finite is taken for one, wherever it stands."""

    def is_vetoed(grad: Tensor) -> bool:
        problem = Problem([shifted(grad, offset)], [torch.ones_like(grad)], [torch.zeros_like(grad)])
        return bool(take_step(NativePasses, problem, 0.3, all_or_nothing=True).vetoed)

    finite, nonfinite = patterns(dtype)
    assert not is_vetoed(finite)
    assert not is_vetoed(finite[1:].flip(0))  # in the other half of a word, beside other neighbours
    largest = torch.full((19,), torch.finfo(dtype).max, dtype=dtype)
    few = [*nonfinite[:2], *nonfinite[-2:], nonfinite[len(nonfinite) // 2 - 1], nonfinite[len(nonfinite) // 2]]
    for place in range(len(largest)):
        for bad in few if place < 2 else few[:1]:
            grad = largest * (-1) ** place
            grad[place] = bad
            assert is_vetoed(grad), f"{bad} at {place}"


@pytest.mark.core
@pytest.mark.parametrize("kind", ["f32", "bf16", "bf16-f32"])
def test_squares_beyond_float32_refuse_nothing(kind: str) -> None:
    """NaN and Inf in r show in the sum of squares of e; so do 1e30 and its like, which are let in."""
    problem = make_problem(kind, [(40,), (3000,)], grad_scale=1e30, ema_scale=1e30)
    before = problem.clone()
    result = take_step(NativePasses, problem, 0.3)
    assert not result.retain_nonfinite
    check_step(before, problem, result, 0.3)
    assert problem.retain is not None
    assert problem.retain[1] is not None
    problem.retain[1][::7] = math.inf
    before = problem.clone()
    assert take_step(NativePasses, problem, 0.3).retain_nonfinite
    assert torch.equal(problem.ema[1][::7], before.ema[1][::7])
    assert (problem.ema[1][1::7] != before.ema[1][1::7]).any()


@pytest.mark.core
@pytest.mark.parametrize("bad", ["nan", "payload", "inf", "-inf"])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nonfinite_gradient_is_left_untouched(device: torch.device, passes: Passes, kind: str, bad: str) -> None:
    problem = make_problem(kind, [(1031,), (65,)], device=device)
    clean = problem.clone()
    grad = problem.grads[0]
    assert grad is not None
    if bad == "payload":
        integer = torch.int32 if grad.dtype == F32 else torch.int16
        grad.view(integer)[PLACES] = {F32: 0x7FC12345, BF16: 0x7FD5, F16: 0x7E55}[grad.dtype]
    else:
        grad[PLACES] = float(bad)
    before = problem.clone()
    result = take_step(passes, problem, 0.3, 0.5)
    take_step(passes, clean, 0.3, 0.5)
    assert result.grad_nonfinite
    assert not result.retain_nonfinite
    for row, (a, b) in enumerate(zip(problem.grads, before.grads, strict=True)):
        assert a is not None
        assert b is not None
        assert bits_of(a) == bits_of(b), f"grads[{row}] was written"
    for a, b in zip(problem.ema, clean.ema, strict=True):
        assert bits_of(a) == bits_of(b), "e is not what it would be with a finite g"


@pytest.mark.core
@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_all_or_nothing(device: torch.device, passes: Passes, kind: str, where: str) -> None:
    for place in PLACES:
        problem = make_problem(kind, [(65,), (1031,)], device=device)
        assert problem.retain is not None
        target = problem.grads[1] if where == "g" else problem.retain[1]
        assert target is not None
        target[place] = math.inf
        before = problem.bits()
        result = take_step(passes, problem, 0.3, 0.5, all_or_nothing=True)  # checks the rounding step
        assert result.vetoed
        assert problem.bits() == before
    problem = make_problem(kind, [(65,), (1031,)], device=device)
    before_step = problem.clone()
    check_step(before_step, problem, take_step(passes, problem, 0.3, 0.5, all_or_nothing=True), 0.3, 0.5)


@pytest.mark.core
@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("dtype", [None, BF16])
def test_error_if_nonfinite(device: torch.device, where: str, dtype: torch.dtype | None) -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in ("first", "second")})
    model.to(device, BF16 if dtype is not None else F32)
    ema = RetainEMA(model.named_parameters(), dtype=dtype)
    with ema.collect():
        for param in model.parameters():
            param.grad = torch.ones_like(param)
    for param in model.parameters():
        param.grad = -torch.ones_like(param)
    rectify_(model.parameters(), ema, 0.5)  # an e to lose
    with ema.collect():
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        if where == "r":
            model["second"].weight.grad[1, 1:] = math.nan
    for param in model.parameters():
        param.grad = -torch.ones_like(param)
    if where == "g":
        model["second"].weight.grad[1, 1:] = math.inf
    tensors = [*ema.tensors, *(p.grad for p in model.parameters() if p.grad is not None)]
    before = [bits_of(t) for t in tensors]
    counters = [int(c) for c in ema.average.rounding.values()]
    what = "grads" if where == "g" else "retain_grads"
    with pytest.raises(
        RuntimeError, match=rf'^{what}\[1\] "second.weight": 2 of 9 elements are NaN or Inf; nothing was'
    ):
        rectify_(model.parameters(), ema, 0.5, error_if_nonfinite=True)
    assert [bits_of(t) for t in tensors] == before
    assert [int(c) for c in ema.average.rounding.values()] == counters


@pytest.mark.core
def test_nonfinite_without_error_is_said(device: torch.device) -> None:
    g, e = torch.tensor([1.0, math.nan], device=device), torch.zeros(2, device=device)
    step = rectify_([parameter(g)], [e], 0.5, retain_grads=[torch.ones(2, device=device)])
    assert step.nonfinite
    assert step.skipped
    assert step.grad_nonfinite
    assert not step.retain_nonfinite
    assert e.tolist() == [0.5, 0.5]


# ---- loss scaling ----------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("scale", [2.0**16, 2.0**-3, 3.0])
def test_ema_holds_unscaled_gradients(device: torch.device, scale: float) -> None:
    param = parameter(torch.ones(4, dtype=F16, device=device))
    ema = RetainEMA([param])
    with ema.collect(scale=scale):
        param.grad = torch.full((4,), 0.5 * scale, dtype=F16, device=device)
    rectify_([param], ema, 0.25)
    assert ema.tensors[0].tolist() == pytest.approx([0.125] * 4, rel=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("ema_dtype", [None, F16])
def test_overflow_changes_nothing(device: torch.device, where: str, ema_dtype: torch.dtype | None) -> None:
    params = [parameter(torch.full((9,), -3.0, dtype=F16, device=device)) for _ in range(2)]
    ema = RetainEMA(params, dtype=ema_dtype)
    scale = 1024.0

    def collect(bad: bool) -> None:
        with ema.collect(scale=scale):
            for param in params:
                param.grad = torch.full((9,), 0.3 * scale, dtype=F16, device=device)
            if bad:
                params[1].grad[4] = math.inf

    collect(bad=False)
    rectify_(params, ema, 0.25)
    collect(bad=where == "r")
    for param in params:
        param.grad = torch.full((9,), -3.0, dtype=F16, device=device)
    if where == "g":
        params[1].grad[4] = math.nan
    tensors = [*ema.tensors, *(p.grad for p in params if p.grad is not None)]
    before = [bits_of(t) for t in tensors]
    counters = [int(c) for c in ema.average.rounding.values()]
    step = rectify_(params, ema, 0.25, tau=0.5)
    assert step.nonfinite
    assert step.skipped
    assert [bits_of(t) for t in tensors] == before
    assert [int(c) for c in ema.average.rounding.values()] == counters, "the rounding moved on"


# ---- extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_gamma_zero_keeps_the_ema(device: torch.device, passes: Passes, kind: str) -> None:
    problem = make_problem(kind, device=device)
    before = [bits_of(e) for e in problem.ema]
    take_step(passes, problem, 0.0)
    assert [bits_of(e) for e in problem.ema] == before


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("kind", SIXTEEN_BIT)
def test_values_on_the_grid_stay(device: torch.device, passes: Passes, kind: str, gamma: float) -> None:
    """Every finite number of the dtype, and the large subnormals many times: there is nothing to round."""
    bits = torch.cat([torch.arange(-(2**15), 2**15), torch.arange(256, 1024).repeat(500)])
    every = bits.to(torch.int16).view(KINDS[kind][0])
    every = every[every.isfinite()].to(device)
    ema, retain = (every, torch.zeros_like(every)) if gamma == 0.0 else (torch.zeros_like(every), every)
    problem = Problem([torch.zeros_like(every)], [retain.clone()], [ema.clone()])
    take_step(passes, problem, gamma)
    moved = (problem.ema[0] != every).nonzero().flatten()
    first = [(float(every[i]), float(problem.ema[0][i])) for i in moved[:3]]
    assert len(moved) == 0, f"{len(moved)} of {len(every)} moved: {first}"


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_gamma_one_forgets_the_old_ema(device: torch.device, passes: Passes, kind: str) -> None:
    problem = make_problem(kind, device=device)
    assert problem.retain is not None
    take_step(passes, problem, 1.0)
    for r, e in zip(problem.retain, problem.ema, strict=True):
        assert r is not None
        assert torch.equal(e, r.to(e.dtype))


def check_scaled(device: torch.device, passes: Passes, kind: str, grad_scale: float, ema_scale: float) -> None:
    for tau in (math.inf, 0.5, 3.0 * grad_scale):
        problem = make_problem(kind, [(257,), (33,)], device=device, grad_scale=grad_scale, ema_scale=ema_scale)
        before = problem.clone()
        result = take_step(passes, problem, 0.3, tau)
        assert check_step(before, problem, result, 0.3, tau).conflict


@pytest.mark.core
@pytest.mark.parametrize("ema_scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("grad_scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("kind", ["f32", "bf16-f32", "bf16"])
def test_scales(device: torch.device, passes: Passes, kind: str, grad_scale: float, ema_scale: float) -> None:
    """Squares, products and ratios that float32 cannot hold."""
    check_scaled(device, passes, kind, grad_scale, ema_scale)


@pytest.mark.core
@pytest.mark.parametrize("ema_scale", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("grad_scale", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["f16", "f16-f32"])
def test_scales_of_float16(
    device: torch.device, passes: Passes, kind: str, grad_scale: float, ema_scale: float
) -> None:
    check_scaled(device, passes, kind, grad_scale, ema_scale)


@pytest.mark.core
@pytest.mark.parametrize("tau", [math.inf, 1.0, 1e-30])
@pytest.mark.parametrize("ema_value", [1e-45, 1e-40, 1e-38, 1e38])
@pytest.mark.parametrize("grad_value", [1e-45, 1e-38, 1.0, 3e38])
def test_never_nan(device: torch.device, passes: Passes, grad_value: float, ema_value: float, tau: float) -> None:
    signs = torch.tensor([1.0, 1.0, 1.0, -0.5], device=device)
    problem = Problem([-grad_value * signs], None, [ema_value * torch.ones(4, device=device)])
    assert problem.ema[0].all()
    result = take_step(passes, problem, tau=tau, ema_is_current=True)
    grad = problem.grad64()
    assert np.isfinite(grad).all(), f"g = {grad}"
    assert result.conflict
    assert all(math.isfinite(value) for value in result.raw[:14].tolist()), result.values
    assert np.linalg.norm(grad) <= tau * (1.0 + 1e-3)


@pytest.mark.core
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_finite_gradients_stay_finite(device: torch.device, passes: Passes, kind: str) -> None:
    """The projection may carry an element beyond the dtype: it saturates."""
    grad_dtype, ema_dtype = KINDS[kind]
    largest = torch.finfo(grad_dtype).max
    # 22.5 degrees: of g = (x, x) the projection leaves (1.2, 0.5) x.
    e = torch.tensor([-math.sin(math.pi / 8), math.cos(math.pi / 8)], device=device).to(ema_dtype)
    g = torch.tensor([-1.0, -1.0], device=device).mul(-0.9).double().mul(largest).to(grad_dtype)
    problem = Problem([g], None, [-e])
    exact = rectify(problem.grad64(), problem.ema64())
    assert np.abs(exact.grad).max() > largest, "nothing to saturate"
    take_step(passes, problem, ema_is_current=True)
    assert problem.grad64()[0] == largest == LARGEST[name_of(grad_dtype)]
    assert np.isfinite(problem.grad64()).all()


@pytest.mark.core
def test_float16_ema_saturates(device: torch.device, passes: Passes) -> None:
    values = torch.tensor([65504.0, -65504.0], dtype=F16, device=device)
    problem = Problem([torch.ones(2, dtype=F16, device=device)], [values.clone()], [values.clone()])
    take_step(passes, problem, keep=1.0, gain=1.0)  # as in a later micro-batch of a step
    assert problem.ema[0].tolist() == [65504.0, -65504.0]


# ---- stochastic rounding ---------------------------------------------------------------------------------------------

# r on the dtype's grid, gain * r off it.
BETWEEN = {
    "bf16": (BF16, 1.0, 0.3),
    "bf16, just above": (BF16, 1.0, 0.2502),
    "bf16, negative": (BF16, -1.6015625, 0.77),
    "bf16, tiny": (BF16, 1e-30, 0.3),
    "f16": (F16, 1.0, 0.3),
    "f16, just below": (F16, 1.0, 0.24998),
    "f16, negative": (F16, -3.0, 0.123),
    "f16, subnormal": (F16, 1e-6, 0.3),
    "f16, subnormal, negative": (F16, -4e-5, 0.41),
    "f16, below all": (F16, 2.0**-24, 0.1),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_rounding_is_unbiased(device: torch.device, passes: Passes, case: str) -> None:
    dtype, value, gain = BETWEEN[case]
    numel, steps = 50_000, 4
    retain = torch.full((numel,), value, dtype=dtype, device=device)
    exact = float(np.float32(gain)) * float(retain[0])
    below, above = (float(x[0]) for x in grid_neighbours(np.array([exact]), name_of(dtype)))
    total, stored = 0.0, np.empty(0)
    for step in range(steps):
        problem = Problem([None], [retain], [torch.zeros(numel, dtype=dtype, device=device)])
        take_step(passes, problem, gain, step=step)
        stored = problem.ema64()
        assert ((stored == below) | (stored == above)).all()
        total += stored.mean() / steps
    up = (exact - below) / (above - below)
    error = abs(above - below) * math.sqrt(up * (1.0 - up) / (numel * steps))
    # The arithmetic before the rounding is float32.
    assert abs(total - exact) <= 4.0 * error + 2.0 * UNIT["float32"] * abs(exact), (
        f"mean {total!r}, exact {exact!r}: {(total - exact) / error:.1f} standard errors"
    )


@pytest.mark.parametrize("kind", SIXTEEN_BIT)
def test_small_gamma_does_not_freeze(device: torch.device, passes: Passes, kind: str) -> None:
    dtype = KINDS[kind][0]
    target, steps, gamma = 1.0 + 32.0 * UNIT[name_of(dtype)], 200, 0.01
    ema = torch.ones(4096, dtype=dtype, device=device)
    retain = torch.full_like(ema, target)
    nearest = torch.ones((), dtype=dtype)
    for step in range(steps):
        take_step(passes, Problem([None], [retain], [ema]), gamma, step=step)
        nearest = ((1.0 - gamma) * nearest.float() + gamma * target).to(dtype)
    assert float(nearest) == 1.0, "round to nearest does not freeze here: the test shows nothing"
    expected = target - (target - 1.0) * (1.0 - gamma) ** steps
    mean = float(ema.double().mean())
    assert mean == pytest.approx(expected, abs=0.02 * (target - 1.0))


@pytest.mark.core
@pytest.mark.parametrize("kind", SIXTEEN_BIT)
def test_same_key_same_bits(device: torch.device, passes: Passes, kind: str) -> None:
    def rounded(**key: Any) -> list[float]:
        dtype = KINDS[kind][0]
        problem = Problem([None], [torch.ones(999, dtype=dtype, device=device)], [torch.zeros(999).to(device, dtype)])
        take_step(passes, problem, 0.3, **key)
        return problem.ema64().tolist()

    key = {"seed": 5, "step": 7, "ids": [3]}
    first = rounded(**key)
    assert rounded(**key) == first
    for name, other in (("seed", 6), ("step", 8), ("ids", [4]), ("seed", 2**63), ("step", 2**40)):
        share = np.mean(np.array(rounded(**{**key, name: other})) != np.array(first))
        assert 0.2 < share < 0.6, f"another {name}: {share:.0%} of the elements differ"


@pytest.mark.core
def test_state_goes_on_bit_for_bit(device: torch.device) -> None:
    def run(ema: RetainEMA, param: nn.Parameter, steps: range) -> None:
        for step in steps:
            with ema.collect():
                param.grad = torch.full_like(param, 1.0 + step)
            param.grad = torch.ones_like(param)
            rectify_([param], ema, 0.01)

    params = [parameter(torch.ones(300, dtype=BF16, device=device)) for _ in range(2)]
    whole, first = (RetainEMA([param], dtype=BF16, seed=9) for param in params)
    run(whole, params[0], range(6))
    run(first, params[1], range(3))
    second = RetainEMA([params[1]], dtype=BF16)
    second.load_state_dict(first.state_dict())
    run(second, params[1], range(3, 6))
    assert torch.equal(whole.tensors[0], second.tensors[0])


def bits_by_whole_numbers(seed: int, step: int, row: int, element: int) -> int:
    """The rounding bits of one element: csrc/arithmetic.h again, in Python's numbers alone."""
    all_64, all_32 = 2**64 - 1, 2**32 - 1

    def mix(x: int) -> int:
        x &= all_64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & all_64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & all_64
        return x ^ x >> 31

    tile, place = divmod(element, 65536)
    key = mix(mix(seed + 0x9E3779B97F4A7C15) ^ (step + 0x632BE59BD9B4E019 & all_64))
    key = mix(mix(key ^ ((row << 32) + 0xD1B54A32D192ED03 & all_64)) + tile * 0x9E3779B97F4A7C15)
    first = (place // 4 * 0x9E3779B9 + key & all_32) * 0xD2511F53
    second = ((first >> 32 ^ first ^ key >> 32) & all_32) * 0xCD9E8D57
    third = ((second >> 32 ^ second ^ first) & all_32) * 0xB5AD4ECF
    four = third ^ (second >> 16 | second << 48 & all_64)
    return four >> 16 * (place % 4) & 0xFFFF


@pytest.mark.parametrize("key", [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**40, 2**31 - 1)])
def test_rounding_bits_are_those_of_the_formula(key: tuple[int, int, int]) -> None:
    bits = reference.rounding_bits(2 * 65536 + 3, *key)
    for element in (0, 1, 2, 3, 4, 7, 8, 65533, 65535, 65536, 65537, 70001, 131071, 131074):
        assert int(bits[element]) == bits_by_whole_numbers(*key, element)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("offset", [0, 1])  # 1: units of one element on a GPU
def test_kernels_round_with_the_bits_of_the_reference(offset: int, dtype: torch.dtype) -> None:
    """Bit for bit, over the border of a tile: all elements are alike, and their random bits alone decide."""
    numel, gain = 65536 + 4 * 1023 + 3, 0.3
    ema = shifted(torch.zeros(numel, dtype=dtype), offset)
    take_step(NativePasses, Problem([None], [torch.ones(numel, dtype=dtype)], [ema]), gain, seed=11, step=5, ids=[9])
    expected = reference.round_stochastically(
        torch.full((numel,), gain), dtype, reference.rounding_bits(numel, 11, 5, 9)
    )
    assert torch.equal(ema, expected)
    assert len(ema.unique()) == 2


def test_rounding_bits_are_uniform() -> None:
    bits = reference.rounding_bits(1 << 20, seed=1, step=2, row=3).numpy()
    assert bits.min() >= 0
    assert bits.max() < 1 << 16
    for what, part in (("high", bits >> 8), ("low", bits & 255), ("even", bits[::2] >> 8), ("odd", bits[1::2] >> 8)):
        counts = np.bincount(part, minlength=256)
        expected = len(part) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255.0) < 5.0 * math.sqrt(2.0 * 255.0), (
            f"{what} bytes: chi-square {chi_square:.0f} of 255"
        )


def test_rounding_bits_are_independent() -> None:
    numel = 1 << 20
    bits = reference.rounding_bits(numel, seed=1, step=2, row=3).numpy().astype(float)
    others = {
        "step": reference.rounding_bits(numel, seed=1, step=3, row=3),
        "row": reference.rounding_bits(numel, seed=1, step=2, row=4),
        "seed": reference.rounding_bits(numel, seed=2, step=2, row=3),
    }
    pairs = {f"lag {lag}": (bits[:-lag], bits[lag:]) for lag in (1, 2, 3, 16, 65536)}
    pairs |= {f"next {name}": (bits, other.numpy().astype(float)) for name, other in others.items()}
    for name, (a, b) in pairs.items():
        correlation = float(np.corrcoef(a, b)[0, 1])
        assert abs(correlation) < 5.0 / math.sqrt(len(a)), f"{name}: correlation {correlation:.2g}"


def chi_square_of(counts: NDArray[np.int64]) -> float:
    """How far counts that should be alike are from that, in standard deviations."""
    expected, freedom = counts.mean(), counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2.0 * freedom))


@pytest.mark.parametrize("key", [(1, 2, 3), (0, 0, 0)])
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 256])
def test_neighbours_are_rounded_independently(lag: int, key: tuple[int, int, int]) -> None:
    """All pairs of upper 5 bits come equally often, and all of lower ones, whichever of four elements is the first."""
    bits = reference.rounding_bits(1 << 20, *key).numpy()
    for what, part in (("upper", bits >> 11), ("middle", bits >> 5 & 31), ("lower", bits & 31)):
        for place in range(4):
            left, right = part[place:-lag:4], part[place + lag :: 4]
            pairs = np.bincount(left[: len(right)] * 32 + right, minlength=1024)
            assert abs(chi_square_of(pairs)) < 5.0, f"{what} bits, place {place}: {chi_square_of(pairs):.1f}"


def test_no_two_bits_of_four_elements_or_of_other_four_agree_too_often() -> None:
    bits = reference.rounding_bits(1 << 20, 1, 2, 3).numpy().reshape(-1, 4)
    signs = (((bits[:, :, None] >> np.arange(16)) & 1) * 2.0 - 1.0).reshape(-1, 64)
    for lag in (0, 1, 2, 3, 8, 64):
        agreement = signs[lag:].T @ signs[: len(signs) - lag] / math.sqrt(len(signs) - lag)
        if lag == 0:
            np.fill_diagonal(agreement, 0.0)
        assert np.abs(agreement).max() < 5.5, f"{lag} fours on"  # of 4,096 pairs
    assert np.abs(signs.sum(axis=0)).max() / math.sqrt(len(signs)) < 5.0


@pytest.mark.parametrize("share", [2.0**-10, 0.1, 0.5, 0.77, 1.0 - 2.0**-10])  # of the way up to the next number
def test_each_of_four_elements_is_rounded_without_bias(share: float) -> None:
    """And whether one goes up says nothing of whether its neighbours do."""
    numel = 1 << 20
    exact = torch.full((numel,), 1.0 + share / 128.0)
    rounded = reference.round_stochastically(exact, BF16, reference.rounding_bits(numel, 4, 5, 6))
    up = (rounded > 1.0).numpy().astype(float)
    chance = (float(exact[0]) - 1.0) * 128.0
    error = math.sqrt(chance * (1.0 - chance))
    assert np.abs(up.reshape(-1, 4).mean(axis=0) - chance).max() < 5.0 * error / math.sqrt(numel / 4)
    apart = (up - chance) / error
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs((apart[:-lag] * apart[lag:]).sum()) < 5.0 * math.sqrt(numel - lag), f"lag {lag}"


# ---- memory ----------------------------------------------------------------------------------------------------------


def transformer(layers: int, width: int, inner: int, key_value: int, vocabulary: int) -> list[int]:
    layer = [width * width] * 2 + [width * key_value] * 2 + [width * inner] * 3 + [width] * 2
    return [vocabulary * width, *layer * layers, width]


of_the_cpu = pytest.mark.skipif(EMULATED, reason="about the chunks of the CPU's kernels")

MODELS = {
    "134.5M": transformer(30, 576, 1536, 192, 49152),
    "6.7B": [*transformer(32, 4096, 11008, 4096, 32000), 32000 * 4096],
    "10,000 tensors": [4096] * 10_000,
}


@pytest.mark.core
@of_the_cpu
@pytest.mark.parametrize("model", MODELS)
def test_extra_memory_is_small(model: str) -> None:
    numels = MODELS[model]
    assert {"134.5M": 134_515_008, "6.7B": 6_738_415_616, "10,000 tensors": 40_960_000}[model] == sum(numels)
    chunks = sum(launch["num_chunks"] for launch in core.plan(numels, [0] * len(numels), 0, 0))
    assert chunks * bytes_per_chunk() < 1 << 20


def bytes_per_chunk() -> int:
    table = core.Table([torch.ones(65537)], None, [torch.ones(65537)])
    assert table.num_chunks == 2
    return table.scratch_bytes // 2


@pytest.mark.core
@of_the_cpu
def test_scratch_of_a_table_follows_its_chunks() -> None:
    for shapes in ([(0,)], [(1,)], [(65536,), (65537,)], [(5,)] * 300):
        tensors = [shifted(torch.ones(shape)) for shape in shapes]
        table = core.Table(tensors, None, [t.clone() for t in tensors])
        assert table.scratch_bytes == max(1, bytes_per_chunk() * table.num_chunks)


def test_public_names_are_there() -> None:
    assert set(gru_fast.__all__) <= set(dir(gru_fast))
