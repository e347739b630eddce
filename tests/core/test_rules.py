"""Rules: the same in Python and in the kernels, what each promises, and what they do with NaN."""

from __future__ import annotations

import itertools
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

from gru_fast import RetainEMA, rectify_, rules
from gru_fast.core import stats
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.reference import ReferencePasses
from gru_fast.core.load import core
from gru_fast.core.rules import RULES, rule_of, settle
from gru_fast.rules import BLUR, GEM, GU, HAMU, CAGrad, PCGrad, Rule, Subspace

Passes = Callable[..., Any]
Vector = NDArray[np.float64]


def test_python_and_kernels_know_the_same_rules() -> None:
    assert tuple(RULES) == core.RULES
    assert set(rules.__all__) >= {rule.__name__ for rule in RULES.values()}


# ---- against float64 and the definition ------------------------------------------------------------------------------


def off(a: Vector, b: Vector) -> Vector:
    """a without its component along b."""
    return a - (a @ b) / (b @ b) * b


def gru(g: Vector, x: Vector) -> Vector:
    return off(g, x) if g @ x < 0 else g


def pcgrad(w_f: float, w_r: float, *, both: bool) -> Callable[[Vector, Vector], Vector]:
    def defined(g: Vector, x: Vector) -> Vector:
        if g @ x >= 0:
            return w_f * g + w_r * x
        return w_f * off(g, x) + w_r * (off(x, g) if both else x)

    return defined


def mgda(g: Vector, x: Vector) -> Vector:
    apart = g - x
    at = 0.5 if not apart.any() else float(np.clip(-(x @ apart) / (apart @ apart), 0.0, 1.0))
    return x + at * apart  # the point of the segment that is nearest to the origin


# With a non-zero g and x that are not opposite. Of cagrad and hamu, which are optima, see below.
DEFINITIONS: list[tuple[Rule, Callable[[Vector, Vector], Vector]]] = [
    (rule_of("gru"), gru),
    (rule_of("a_gem"), gru),
    (rule_of("gdr"), pcgrad(1.0, 1.0, both=True)),
    (PCGrad(), pcgrad(1.0, 1.0, both=False)),
    (PCGrad(w_f=2.0, w_r=0.5), pcgrad(2.0, 0.5, both=False)),
    (PCGrad(form="sum", w_f=0.25), pcgrad(0.25, 1.0, both=True)),
    (PCGrad(form="mean"), pcgrad(0.5, 0.5, both=True)),
    (rule_of("upgrad"), pcgrad(0.5, 0.5, both=True)),
    (BLUR(), lambda g, x: off(x, g) + g),
    (BLUR(below="retain", g0=0.25), lambda g, x: off(g, x) + 0.25 * x),
    (GU(w_f=0.125), lambda g, x: 0.125 * off(g, x) + x),
    (rule_of("ngdiff"), lambda g, x: g / np.linalg.norm(g) + x / np.linalg.norm(x)),
    (rule_of("mgda"), mgda),
    (rule_of("gem"), gru),
    (GEM(margin=0.5), lambda g, x: g if g @ x >= 0 else g + max(0.5, -(g @ x) / (x @ x)) * x),
    (Subspace(w_r=0.5), lambda g, x: off(g, x) + 0.5 * x),
]
OPTIMA = [CAGrad(), CAGrad(c=1.5), HAMU(), HAMU(q=30.0), HAMU(q=5.0, radius=4.0), HAMU(form="u", q=20.0)]
EVERY = [rule for rule, _ in DEFINITIONS] + OPTIMA
vectors = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)
both_passes = pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])


def test_every_rule_is_tested() -> None:
    assert {rule.name for rule in EVERY} == {name for name, rule in RULES.items() if not rule.elementwise}


def stepped(passes: Passes, rule: Rule, g: Vector, x: Vector, tau: float = math.inf) -> tuple[Vector, Any]:
    """g after a step against x, of two tensors, and what it left."""
    grads = list(torch.tensor(g).float().split([1, len(g) - 1]))
    problem = Problem(grads, None, list(torch.tensor(x).float().split([1, len(g) - 1])))
    result = take_step(passes, problem, tau=tau, ema_is_current=True, rule=rule)
    return torch.cat(grads).double().numpy(), result


def is_ordinary(g: Vector, x: Vector) -> bool:
    """Neither tiny nor opposite: those have tests of their own."""
    sizes = float(np.linalg.norm(g)), float(np.linalg.norm(x))
    return min(sizes) > 0.03 and max(sizes) / min(sizes) < 1e4 and g @ x > -0.999 * sizes[0] * sizes[1]


@pytest.mark.parametrize(("rule", "definition"), DEFINITIONS, ids=[repr(rule) for rule, _ in DEFINITIONS])
@both_passes
@given(vectors, vectors, st.one_of(st.just(math.inf), st.floats(0.01, 100.0)))
@settings(deadline=None, max_examples=40)
def test_a_step_is_what_the_rule_says(
    passes: Passes, rule: Rule, definition: Callable[..., Vector], g: list[float], x: list[float], tau: float
) -> None:
    u, v = np.array(g), np.array(x)
    if not is_ordinary(u, v):
        return
    found, result = stepped(passes, rule, u, v, tau)
    expected = definition(u, v)
    norm = float(np.linalg.norm(expected))
    expected = expected * min(1.0, tau / norm) if norm > 0 else expected
    scale = float(abs(result.alpha) * np.linalg.norm(u) + abs(result.beta) * np.linalg.norm(v))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * scale)
    assert result.out_norm_sq == pytest.approx(float(found @ found), rel=1e-4, abs=1e-8 * scale**2)
    assert np.linalg.norm(found) <= tau * (1 + 1e-3)


# ---- what each promises ----------------------------------------------------------------------------------------------

FOR_X = {"gru", "a_gem", "gem", "subspace", "pcgrad", "gdr", "upgrad", "mgda", "ngdiff", "gu"}  # <., x> >= 0
FOR_G = {"gdr", "upgrad", "mgda", "ngdiff", "blur"}  # <., g> >= 0


@pytest.mark.parametrize("rule", EVERY, ids=repr)
@given(vectors, vectors)
@settings(deadline=None, max_examples=60)
def test_promises(rule: Rule, g: list[float], x: list[float]) -> None:
    u, v = np.array(g), np.array(x)
    if not is_ordinary(u, v):
        return
    found, result = stepped(NativePasses, rule, u, v)
    of_u, of_v = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    noise = 1e-5 * (abs(result.alpha) * of_u + abs(result.beta) * of_v)
    if rule.name in FOR_X or rule == CAGrad(c=1.5):
        assert found @ v >= -noise * of_v
    two_sided = isinstance(rule, PCGrad) and rule.form != "one_sided"
    if (rule.name in FOR_G and getattr(rule, "below", "forget") == "forget") or two_sided or rule == CAGrad(c=1.5):
        assert found @ u >= -noise * of_u
    if isinstance(rule, BLUR):
        held, size = (u, of_u) if rule.below == "forget" else (v, of_v)
        assert found @ held == pytest.approx(rule.g0 * size**2, rel=1e-5, abs=noise * size)
    if isinstance(rule, GU):
        assert found @ v == pytest.approx(rule.w_r * of_v**2, rel=1e-5, abs=noise * of_v)
    if rule.name == "mgda":
        assert np.linalg.norm(found) <= min(of_u, of_v) * (1 + 1e-5) + noise
        assert min(found @ u, found @ v) >= found @ found * (1 - 1e-4) - noise * max(of_u, of_v)


def plane(g: Vector, x: Vector) -> tuple[Vector, Vector, float]:
    """g and x in two coordinates; the third number is how far they are from one line, as a sine."""
    first = g / np.linalg.norm(g)
    rest = off(x, first)
    height = float(np.linalg.norm(rest))
    return np.array([np.linalg.norm(g), 0.0]), np.array([x @ first, height]), height / float(np.linalg.norm(x))


ANGLES = np.linspace(0.0, 2 * math.pi, 20001)
CIRCLE = np.stack((np.cos(ANGLES), np.sin(ANGLES)), 1)


@pytest.mark.parametrize("rule", [CAGrad(), CAGrad(c=0.1), CAGrad(c=1.5)], ids=repr)
@given(vectors, vectors)
@settings(deadline=None, max_examples=40)
def test_cagrad_does_most_for_the_worse_off(rule: CAGrad, g: list[float], x: list[float]) -> None:
    """No vector within c |g0| of the mean g0 makes the smaller of <., g> and <., x> larger."""
    u, v = np.array(g), np.array(x)
    if not is_ordinary(u, v):
        return
    found, _ = stepped(NativePasses, rule, u, v)
    flat_u, flat_v, _ = plane(u, v)
    mean = (flat_u + flat_v) / 2
    reach = rule.c * float(np.linalg.norm(mean))
    tried = mean + reach * CIRCLE  # the best lies on the edge: the objective has no peak inside
    best = float(np.minimum(tried @ flat_u, tried @ flat_v).max())
    noise = 1e-4 * max(np.linalg.norm(u), np.linalg.norm(v)) ** 2
    assert min(found @ u, found @ v) >= best - noise
    assert np.linalg.norm(found - (u + v) / 2) <= reach + 1e-4 * max(np.linalg.norm(u), np.linalg.norm(v))


@pytest.mark.parametrize("rule", [rule for rule in OPTIMA if isinstance(rule, HAMU)], ids=repr)
@given(vectors, vectors)
@settings(deadline=None, max_examples=40)
def test_hamu_is_the_best_step_that_does_enough(rule: HAMU, g: list[float], x: list[float]) -> None:
    u, v = np.array(g), np.array(x)
    if not is_ordinary(u, v):
        return
    found, _ = stepped(NativePasses, rule, u, v)
    must, free = (u, v) if rule.form == "q" else (v, u)
    flat_must, flat_free, sine = plane(must, free)
    reach = float(np.linalg.norm(free)) if rule.radius is None else rule.radius
    if rule.q > reach * np.linalg.norm(must):  # infeasible
        np.testing.assert_allclose(found, rule.q / (must @ must) * must, rtol=1e-5, atol=1e-6)
        return
    size = float(np.linalg.norm(found))
    assert size <= reach * (1 + 1e-4)
    assert found @ must >= rule.q * (1 - 1e-4) - 1e-4 * reach * np.linalg.norm(must)
    if sine < 1e-2:  # collinear but for noise
        return
    tried = reach * CIRCLE
    enough = tried[tried @ flat_must >= rule.q]
    if len(enough):
        best = float((enough @ flat_free).max())
        assert found @ free >= best - 1e-3 * reach * np.linalg.norm(free)


# ---- worked by hand --------------------------------------------------------------------------------------------------

OPPOSITE = [  # g = 1, x = -1
    ("gru", {}, 0.0), ("a_gem", {}, 0.0), ("gdr", {}, 0.0), ("upgrad", {}, 0.0), ("mgda", {}, 0.0), ("ngdiff", {}, 0.0),
    ("pcgrad", {}, -1.0), ("pcgrad", {"w_r": 0.5}, -0.5), ("pcgrad", {"form": "sum"}, 0.0),
    ("blur", {}, 1.0), ("blur", {"below": "retain"}, -1.0), ("gu", {"w_f": 0.125}, -1.0), ("cagrad", {}, 0.0),
    ("hamu", {}, 0.0), ("hamu", {"q": 0.5}, 0.5), ("hamu", {"q": 3.0}, 3.0),
]  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize(("name", "options", "expected"), OPPOSITE)
@both_passes
def test_one_parameter_that_they_disagree_on(
    passes: Passes, name: str, options: dict[str, Any], expected: float
) -> None:
    grads = [torch.tensor([1.0])]
    problem = Problem(grads, None, [torch.tensor([-1.0])])
    result = take_step(passes, problem, ema_is_current=True, rule=rule_of(name, options))
    assert grads[0].item() == pytest.approx(expected, abs=1e-7)
    assert bool(result.degenerate) == (expected == 0.0)
    assert result.conflict


NO_X = [
    ("pcgrad", {"w_f": 0.5, "w_r": 2.0}, 0.5),
    ("upgrad", {}, 0.5),
    ("gu", {"w_f": 0.125}, 0.125),
    ("ngdiff", {}, 0.2),
]


@pytest.mark.parametrize("rule", EVERY, ids=repr)
@both_passes
def test_zeros(passes: Passes, rule: Rule) -> None:
    """Without an x, g is what is left, with the weight it has; without a g, x is; without both, nothing breaks."""
    g, zero = np.array([3.0, 4.0]), np.zeros(2)
    found, result = stepped(passes, rule, g, zero)
    weights = {name: weight for name, options, weight in NO_X if rule_of(name, options) == rule or name == rule.name}
    if not isinstance(rule, PCGrad):
        np.testing.assert_allclose(found, weights.get(rule.name, 1.0) * g, rtol=1e-6)
    assert result.beta == 0.0
    found, result = stepped(passes, rule, zero, g)
    assert np.isfinite(found).all()
    assert abs(found[0] * 4.0 - found[1] * 3.0) < 1e-6  # along x, or nothing
    found, result = stepped(passes, rule, zero, zero)
    assert not found.any()
    assert not result.degenerate
    assert not result.conflict


@pytest.mark.parametrize(("name", "options", "weight"), NO_X)
def test_what_is_left_without_a_retain_gradient(name: str, options: dict[str, Any], weight: float) -> None:
    found, _ = stepped(NativePasses, rule_of(name, options), np.array([3.0, 4.0]), np.zeros(2))
    np.testing.assert_allclose(found, [3.0 * weight, 4.0 * weight], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("rule", ["gru", "a_gem", "gdr", "upgrad"])
@both_passes
def test_opposite_vectors_leave_nothing(passes: Passes, rule: str) -> None:
    grads, ema = [torch.tensor([1.0, -3.0])], [torch.tensor([-0.5, 1.5])]
    result = take_step(passes, Problem(grads, None, ema), ema_is_current=True, rule=rule)
    assert result.degenerate
    assert grads[0].tolist() == [0.0, 0.0]


# ---- Python and the kernels, number for number -----------------------------------------------------------------------

CASES = [
    [d, m, u, 0.0, 0.0]
    for d, m, u in (
        (-2.0, 4.0, 5.0), (3.0, 4.0, 5.0), (0.0, 4.0, 5.0), (-1.0, 0.0, 5.0), (0.0, 0.0, 0.0), (-0.999, 1.0, 1.0),
        (-1.0, 1.0, 1.0), (-1e-30, 1e-40, 1e-20), (-1e20, 1e30, 1e12),
        (4.0, 4.0, 4.0), (-4.0, 4.0, 4.0), (2.0, 0.0, 0.0), (0.0, 4.0, 0.0), (-2.0, 1.0, 4.0), (7.0, 5.0, 10.0),
        (math.nan, 1.0, 1.0), (-1.0, math.inf, 1.0),
    )
]  # fmt: skip
CASES += [[-2.0, 4.0, 5.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]  # r held NaN; an all-or-nothing step met some


@pytest.mark.core
@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_kernels_decide_and_settle_as_python_does(rule: Rule) -> None:
    """finish completes the statistics from whatever sums it is given."""
    made = NativePasses(Rows([torch.zeros(1)], None, [torch.zeros(1)], ema_is_current=True))
    for sums, written, tau in itertools.product(CASES, (None, 0.0, 4.0), (math.inf, 1.0, 1e-3)):
        given = [*sums, sums[stats.GRAD_NORM_SQ] if written is None else written]
        made.stats.zero_()
        made.stats[: stats.WRITTEN + 1] = torch.tensor(given, dtype=torch.float64)
        made.finish(StepArgs(1.0, 0.0, tau, rule))
        found = made.stats[stats.ALPHA : stats.GRAD_NONFINITE + 1].numpy()
        np.testing.assert_array_equal(found, settle(rule, given, tau), err_msg=f"{given}, tau {tau}")


def test_a_rule_is_refused_by_name() -> None:
    known = ", ".join(RULES)
    with pytest.raises(ValueError, match=rf"^rule: expected one of {known}, got 'best'$"):
        rectify_([torch.ones(1)], [torch.ones(1)], 0.5, rule="best")
    with pytest.raises(
        TypeError, match=r"^rule: expected a name or a rule such as rules\.PCGrad\(\), got the class PCGrad$"
    ):
        rectify_([torch.ones(1)], [torch.ones(1)], 0.5, rule=PCGrad)  # type: ignore[arg-type]
    table = core.Table([torch.ones(1)], None, [torch.ones(1)])
    scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf'^rule: expected one of {known}, got "best"$'):
        table.apply(torch.zeros(16, dtype=torch.float64), scratch, 1.0, "best", (0.0,) * 4, 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pcgrad", {"form": "both"}, r"^pcgrad\.form: expected one of one_sided, sum, mean, got 'both'$"),
        ("pcgrad", {"w_r": -1.0}, r"^pcgrad\.w_r: expected a finite number of at least 0, got -1\.0$"),
        ("gu", {"w_f": math.nan}, r"^gu\.w_f: expected a finite number of at least 0, got nan$"),
        ("hamu", {"radius": "far"}, r"^hamu\.radius: expected a finite number of at least 0 or none, got 'far'$"),
        ("cagrad", {"c": True}, r"^cagrad\.c: expected a finite number of at least 0, got True$"),
        ("blur", {"above": "forget"}, r"^blur: expected one of below, g0, got 'above'$"),
        ("mgda", {"t": 1.0}, r"^mgda: expected no options, got 't'$"),
    ],
)
def test_options_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_of(name, options)


def test_options_beside_an_instance_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^options: expected none beside PCGrad\("):
        rule_of(PCGrad(), {"form": "sum"})
    assert rule_of(PCGrad(form="sum")).options == (1.0, 1.0, 1.0, 0.0)
    assert HAMU().options == (0.0, 0.0, -1.0, 0.0)


# ---- through the whole road -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [name for name in RULES if name not in {"gru", "a_gem", "gem"}])
@pytest.mark.parametrize("kept", ["RetainEMA", "list"])
@pytest.mark.parametrize("how", ["collect", "stream"])
def test_nan_in_r_gives_a_step_up_that_needs_all_of_r(how: str, kept: str, rule: str) -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([1.0, 2.0])
    bad = torch.tensor([-1.0, math.nan])
    if kept == "list":
        step = rectify_([param], [torch.zeros(2)], 1.0, retain_grads=[bad], rule=rule)
    else:
        ema = RetainEMA([param])
        with ema.stream(1.0) if how == "stream" else ema.collect():
            (param * bad).sum().backward()
        step = rectify_([param], ema, 1.0, rule=rule)
    assert step.skipped
    assert step.retain_nonfinite
    assert not step.grad_nonfinite
    assert param.grad.tolist() == [1.0, 2.0]
