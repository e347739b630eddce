"""What holds for any list of tensors, over random shapes, dtypes, scales, gamma and tau."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import UNIT, dot_product, rectify
from tensors import KIND_NAMES, KINDS, Problem, check_step, make_problem, shifted, take_step

from gru_fast import rectify_
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.reference import ReferencePasses

pytestmark = pytest.mark.core

ordinary = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

shapes = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6)
backends = st.sampled_from([NativePasses, ReferencePasses])
gammas = st.sampled_from([0.0, 0.01, 0.3, 0.8, 1.0]) | st.floats(0.0, 1.0)
# tau as a share of |g|
clips = st.just(math.inf) | st.floats(1e-3, 2.0)


@st.composite
def problems(draw: st.DrawFn, scales: tuple[float, ...] = (-12, -3, 0, 3, 12)) -> Problem:
    """Every list of kinds and shapes; float16 keeps within its range."""
    kinds = draw(st.lists(st.sampled_from(KIND_NAMES), min_size=1, max_size=3))
    fits = [s for s in scales if abs(s) <= 3] if any("f16" in k.replace("bf16", "") for k in kinds) else scales
    problem = make_problem(
        kinds,
        draw(shapes),
        conflict=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
        grad_scale=10.0 ** draw(st.sampled_from(fits)),
        ema_scale=10.0 ** draw(st.sampled_from(fits)),
    )
    problem.grads = [None if draw(st.integers(0, 7)) == 0 else g for g in problem.grads]
    assert problem.retain is not None
    problem.retain = [None if draw(st.integers(0, 7)) == 0 else r for r in problem.retain]
    return problem


def tau_of(problem: Problem, clip: float) -> float:
    norm = float(np.linalg.norm(problem.grad64()))
    return clip * norm if norm > 0.0 else clip


@ordinary
@given(problem=problems(), passes=backends, gamma=gammas, clip=clips)
def test_step_agrees_with_the_oracle(problem: Problem, passes: Any, gamma: float, clip: float) -> None:
    """Element by element, sums, flags and postconditions; the error budgets are `ema_error` and `grad_error`."""
    before, tau = problem.clone(), tau_of(problem, clip)
    result = take_step(passes, problem, gamma, tau)
    check_step(before, problem, result, gamma, tau)


@ordinary
@given(problem=problems(), gamma=gammas, clip=clips)
def test_rectify_keeps_its_postconditions(problem: Problem, gamma: float, clip: float) -> None:
    """Through the public function, missing gradients and all.

    Rounding g to its dtype (half a place an element, at random, or up to two places where it is scaled once more) moves
    <g, e> by no more than 5 units of sum |g_i e_i|, and the sums by 1e-6 of |g before| |e|.
    """
    assert problem.retain is not None
    tau = tau_of(problem, clip)
    params = []
    for grad, ema, retain in zip(problem.grads, problem.ema, problem.retain, strict=True):
        like = grad if grad is not None else retain if retain is not None else ema
        param = torch.nn.Parameter(torch.zeros_like(like))
        param.grad = grad
        params.append(param)
    norm_before = float(np.linalg.norm(problem.grad64()))
    step = rectify_(params, problem.ema, gamma, tau, retain_grads=problem.retain)
    after = Problem([p.grad for p in params], None, problem.ema)
    grad, ema = after.grad64(), after.ema64()
    assert np.isfinite(grad).all()
    norm = math.sqrt(dot_product(grad, grad))
    assert norm <= tau * (1.0 + 1e-3), f"|g| = {norm}, tau = {tau}"
    unit = np.array([UNIT["float32"], UNIT["bfloat16"], UNIT["float16"]])[after.grad_dtypes()]
    quantum = np.where(after.grad_dtypes() == 2, 2.0**-24, 2.0**-133)
    allowed = 5.0 * dot_product(unit * np.abs(grad) + quantum, np.abs(ema))
    allowed += 3e-6 * norm_before * float(np.linalg.norm(ema))
    assert dot_product(grad, ema) >= -allowed, f"<g, e> = {dot_product(grad, ema)}, at least {-allowed} expected"
    if not step.conflict and not step.clipped:
        assert [g is None for g in after.grads] == [g is None for g in problem.grads], "a gradient was made for nothing"


@ordinary
@given(problem=problems(scales=(-3, 0, 3)), passes=backends)
def test_rectifying_twice_changes_nothing_more(problem: Problem, passes: Any) -> None:
    """With e held. What rounding left of the conflict is taken out once more: within the budget of one step."""
    take_step(passes, problem, 0.5)
    once = problem.clone()
    take_step(passes, problem, 0.0, ema_is_current=True)
    before, ema = once.grad64(), once.ema64()
    unit = np.array([UNIT["float32"], UNIT["bfloat16"], UNIT["float16"]])[once.grad_dtypes()]
    size = float(np.linalg.norm(before)) / max(float(np.linalg.norm(ema)), 1e-300)
    # The second projection takes away at most what rounding the first one left along e.
    left = 3e-6 + 5.0 * float(unit.max(initial=0.0))
    allowed = left * (np.abs(before) + size * np.abs(ema)) + 2.0**-23 * (once.grad_dtypes() == 2) + 1e-38
    has_grad = once.has_grad()
    if not has_grad.all():
        return  # the rows without a gradient carry a part of the projection that was not written
    error = np.abs(problem.grad64() - before)
    worst = int((error - allowed).argmax()) if error.size else 0
    assert (error <= allowed).all(), f"element {worst}: {before[worst]!r} became {problem.grad64()[worst]!r}"


@ordinary
@given(
    kind=st.sampled_from(KIND_NAMES),
    rows=shapes,
    passes=backends,
    seed=st.integers(0, 2**31),
    power=st.integers(-6, 6),
    conflict=st.booleans(),
)
def test_scaling_g_by_a_power_of_two_scales_the_result(
    kind: str, rows: list[tuple[int, ...]], passes: Any, seed: int, power: int, conflict: bool
) -> None:
    """Bit for bit: without tau every operation is linear in g, and powers of two are exact (subnormals aside)."""
    one, other = (make_problem(kind, rows, seed=seed, conflict=conflict) for _ in range(2))
    for problem, factor in ((one, 1.0), (other, 2.0**power)):
        for grad in problem.grads:
            assert grad is not None
            # Multiples of 2^-10: scaled down they are still float16 numbers.
            grad.copy_((grad.double() * 1024).round() / 1024 * factor)
    take_step(passes, one, 0.3)
    take_step(passes, other, 0.3)
    a, b = one.grad64() * 2.0**power, other.grad64()
    smallest = torch.finfo(KINDS[kind][0]).tiny
    normal = (np.minimum(np.abs(a), np.abs(b)) >= smallest) & (np.abs(one.grad64()) >= smallest)
    differs = normal & (a != b)
    assert not differs.any(), f"{a[differs][:3]} and {b[differs][:3]}"
    assert normal.mean() > 0.9 if a.size > 50 else True


@ordinary
@given(problem=problems(scales=(-3, 0, 3)), passes=backends, data=st.data())
def test_splitting_a_tensor_changes_nothing(problem: Problem, passes: Any, data: st.DataObject) -> None:
    """The parameters are one vector: where it is cut does not matter (float32, so that rounding bits do not either)."""
    rows = [row for row, e in enumerate(problem.ema) if e.numel() > 0]
    whole = Problem(
        [torch.cat([_flat(problem.grads[row], problem.ema[row]) for row in rows] or [torch.empty(0)])],
        None,
        [torch.cat([problem.ema[row].float().flatten() for row in rows] or [torch.empty(0)])],
    )
    numel = whole.ema[0].numel()
    cut = data.draw(st.integers(0, numel))
    parts = Problem(
        [shifted(g) for g in _grad(whole).tensor_split([cut])],
        None,
        [shifted(e) for e in whole.ema[0].tensor_split([cut])],
    )
    before = whole.clone()
    one = take_step(passes, whole, ema_is_current=True)
    two = take_step(passes, parts, ema_is_current=True)
    size = math.sqrt(one.ema_norm_sq * one.grad_norm_sq)
    assert one.dot == pytest.approx(two.dot, abs=2e-6 * size)
    outcome = rectify(before.grad64(), before.ema64())
    if abs(outcome.dot) > 1e-5 * size:
        ratio = math.sqrt(one.grad_norm_sq / one.ema_norm_sq) if one.ema_norm_sq else 0.0
        allowed = 4e-6 * (np.abs(before.grad64()) + ratio * np.abs(before.ema64()))
        assert (np.abs(whole.grad64() - parts.grad64()) <= allowed).all()


def _flat(grad: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(like.numel()) if grad is None else grad.float().flatten()


def _grad(problem: Problem) -> torch.Tensor:
    (grad,) = problem.grads
    assert grad is not None
    return grad
