"""Rules: the same in Python and in the kernels, what each promises, and what they do with NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensors import Problem, take_step
from torch import nn

from gru_fast import RetainEMA, rectify_
from gru_fast.core import stats
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.reference import ReferencePasses
from gru_fast.core.load import core
from gru_fast.core.rules import RULES, settle

Passes = Callable[..., Any]
Vector = NDArray[np.float64]


def test_python_and_kernels_know_the_same_rules() -> None:
    assert tuple(RULES) == core.RULES


# ---- against float64 and the definition ------------------------------------------------------------------------------


def gru(g: Vector, e: Vector) -> Vector:
    return g - min(g @ e, 0.0) / (e @ e) * e if e @ e > 0 else g


def gdr(g: Vector, e: Vector) -> Vector:
    return g + e if g @ e >= 0 else (g - (g @ e) / (e @ e) * e) + (e - (g @ e) / (g @ g) * g)


DEFINITIONS: dict[str, Callable[[Vector, Vector], Vector]] = {"gru": gru, "gdr": gdr}
vectors = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)


def test_every_rule_is_tested() -> None:
    assert DEFINITIONS.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])
@given(vectors, vectors, st.one_of(st.just(math.inf), st.floats(0.01, 100.0)))
@settings(deadline=None, max_examples=60)
def test_a_step_is_what_the_rule_says(passes: Passes, rule: str, g: list[float], e: list[float], tau: float) -> None:
    u, v = np.array(g), np.array(e)
    size = float(np.linalg.norm(u) * np.linalg.norm(v))
    if size < 1e-3 or u @ v < -0.999 * size:  # opposite: a test of its own
        return
    grads = list(torch.tensor(g).split([1, 3]))
    problem = Problem(grads, None, list(torch.tensor(e).split([1, 3])))
    result = take_step(passes, problem, tau=tau, ema_is_current=True, rule=rule)
    expected = DEFINITIONS[rule](u, v)
    norm = float(np.linalg.norm(expected))
    expected = expected * min(1.0, tau / norm) if norm > 0 else expected
    found = torch.cat(grads).double().numpy()
    scale = float(np.abs(u).max() + np.abs(v).max())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * scale)
    assert found @ v >= -1e-5 * scale * float(np.linalg.norm(v))  # no rule raises the retain loss
    if rule == "gdr":
        assert found @ u >= -1e-5 * scale * float(np.linalg.norm(u))
    assert result.out_norm_sq == pytest.approx(float(found @ found), rel=1e-4, abs=1e-8 * scale**2)


@pytest.mark.core
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])
def test_opposite_vectors_leave_nothing(passes: Passes, rule: str) -> None:
    grads, ema = [torch.tensor([1.0, -3.0])], [torch.tensor([-0.5, 1.5])]
    result = take_step(passes, Problem(grads, None, ema), ema_is_current=True, rule=rule)
    assert result.degenerate
    assert grads[0].tolist() == [0.0, 0.0]


# ---- the two of them, number for number ------------------------------------------------------------------------------

CASES = [
    [d, m, u, 0.0, 0.0]
    for d, m, u in (
        (-2.0, 4.0, 5.0), (3.0, 4.0, 5.0), (0.0, 4.0, 5.0), (-1.0, 0.0, 5.0), (0.0, 0.0, 0.0), (-0.999, 1.0, 1.0),
        (-1.0, 1.0, 1.0), (-1e-30, 1e-40, 1e-20), (-1e20, 1e30, 1e12), (math.nan, 1.0, 1.0), (-1.0, math.inf, 1.0),
    )
]  # fmt: skip
CASES += [[-2.0, 4.0, 5.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]  # r held NaN; an all-or-nothing step met some


@pytest.mark.core
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tau", [math.inf, 1.0, 1e-3])
@pytest.mark.parametrize("written", [None, 0.0, 4.0])
@pytest.mark.parametrize("sums", CASES, ids=str)
def test_kernels_decide_and_settle_as_python_does(
    sums: list[float], written: float | None, tau: float, rule: str
) -> None:
    """finish completes the statistics from whatever sums it is given."""
    made = NativePasses(Rows([torch.zeros(1)], None, [torch.zeros(1)], ema_is_current=True))
    given = [*sums, sums[stats.GRAD_NORM_SQ] if written is None else written]
    made.stats.zero_()
    made.stats[: stats.WRITTEN + 1] = torch.tensor(given, dtype=torch.float64)
    made.finish(StepArgs(1.0, 0.0, tau, rule))
    expected = settle(rule, given, tau)
    np.testing.assert_array_equal(made.stats[stats.ALPHA : stats.GRAD_NONFINITE + 1].numpy(), expected)


def test_a_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^rule: expected one of gru, gdr, got 'pcgrad'$"):
        rectify_([torch.ones(1)], [torch.ones(1)], 0.5, rule="pcgrad")
    table = core.Table([torch.ones(1)], None, [torch.ones(1)])
    scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r'^rule: expected one of gru, gdr, got "pcgrad"$'):
        table.apply(torch.zeros(16, dtype=torch.float64), scratch, 1.0, "pcgrad", 1)


# ---- gdr through the whole road --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["RetainEMA", "list"])
@pytest.mark.parametrize("how", ["collect", "stream"])
def test_nan_in_r_gives_a_step_up_that_needs_all_of_r(how: str, kept: str) -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([1.0, 2.0])
    bad = torch.tensor([-1.0, math.nan])
    if kept == "list":
        step = rectify_([param], [torch.zeros(2)], 1.0, retain_grads=[bad], rule="gdr")
    else:
        ema = RetainEMA([param])
        with ema.stream(1.0) if how == "stream" else ema.collect():
            (param * bad).sum().backward()
        step = rectify_([param], ema, 1.0, rule="gdr")
    assert step.skipped
    assert step.retain_nonfinite
    assert not step.grad_nonfinite
    assert param.grad.tolist() == [1.0, 2.0]
